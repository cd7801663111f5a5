// Executor::process: every option and every clause that holds for threads holds for forked workers.
//
// Workers share memory with the test where the test asks them something, and never use Catch2's macros.
#include <pthread.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <forward_list>
#include <iterator>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <optional>
#include <pyarallel.hpp>
#include <ranges>
#include <set>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "support/catch.hpp"
#include "support/child.hpp"
#include "support/counted.hpp"
#include "support/meanwhile.hpp"
#include "support/single_pass.hpp"
#include "support/wait.hpp"
#include "support/watchdog.hpp"

using namespace pyarallel;
using namespace support;
using namespace std::chrono_literals;

namespace {

using SteadyClock = std::chrono::steady_clock;
using Ints = std::vector<int>;

/// An object that the test and the workers see alike.
template <class T>
class Shared {
 public:
  Shared() : memory_(sizeof(T)), object_(::new(memory_.data()) T()) {}
  T* operator->() const { return object_; }
  T& operator*() const { return *object_; }

 private:
  detail::SharedMemory memory_;
  T* object_;
};

/// One number for each of a few items.
class Tally {
 public:
  static constexpr std::size_t most = 2000;
  std::atomic<int>& operator[](std::size_t item) { return numbers_.at(item); }
  std::atomic<int>& operator[](int item) { return numbers_.at(static_cast<std::size_t>(item)); }
  int total() const { return std::accumulate(numbers_.begin(), numbers_.end(), 0); }
  Ints first(std::size_t count) const {
    return {numbers_.begin(), numbers_.begin() + static_cast<std::ptrdiff_t>(count)};
  }

 private:
  std::array<std::atomic<int>, most> numbers_{};
};

/// What happened, in its order.
template <class T>
class Log {
 public:
  void add(T entry) { entries_.at(static_cast<std::size_t>(size_++)) = entry; }
  std::vector<T> all() const { return {entries_.begin(), entries_.begin() + size_.load()}; }

 private:
  std::array<T, 2000> entries_{};
  std::atomic<int> size_{0};
};

/// Around each test: it ends, and no child process is left when it does.
class Test {
 public:
  Test() = default;
  Test(const Test&) = delete;
  Test& operator=(const Test&) = delete;
  ~Test() {
    const pid_t child = waitpid(-1, nullptr, WNOHANG);
    CHECK((child == -1 && errno == ECHILD));
  }

 private:
  Watchdog watchdog_;
};

/// Counts the forks of this program.
class Forks {
 public:
  Forks() {
    static const bool counts = pthread_atfork([] { ++so_far_; }, nullptr, nullptr) == 0;
    if (!counts) throw std::runtime_error("pthread_atfork");
    before_ = so_far_;
  }
  int count() const { return so_far_ - before_; }

 private:
  static inline std::atomic<int> so_far_{0};
  int before_;
};

const pid_t test_process = getpid();
bool in_worker() { return getpid() != test_process; }

constexpr auto itself = [](int number) { return number; };

Ints numbers(int count) {
  Ints all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

/// The same for input that workers inherit and for input that is pulled and sent.
template <class Code>
void for_each_kind_of_input(int count, Code code) {
  SECTION("inherited") {
    const Ints items = numbers(count);
    code(items);
  }
  SECTION("sent") {
    const Ints all = numbers(count);
    const std::list<int> items(all.begin(), all.end());
    code(items);
  }
}

template <class R>
const Error& error_of(const MapResult<R>& result, std::size_t index) {
  const auto failures = result.failures();
  const auto found = std::ranges::find(failures, index, &Failure::index);
  if (found == failures.end()) throw std::logic_error("item " + std::to_string(index) + " did not fail");
  return found->error;
}

template <class R>
bool failed(const MapResult<R>& result, std::size_t index) {
  return std::ranges::find(result.failures(), index, &Failure::index) != result.failures().end();
}

template <class R>
Ints attempts_of(const MapResult<R>& result) {
  Ints all;
  for (const auto& item : result.item_results()) all.push_back(item.attempts);
  return all;
}

template <class R>
std::vector<R> list_of(const MapResult<R>& result) {
  return std::vector<R>(result.begin(), result.end());
}

bool says(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

struct Boom : std::runtime_error {
  using runtime_error::runtime_error;
};

[[noreturn]] void hang() {
  while (true) pause();
}

[[noreturn]] void crash() {
  raise(SIGKILL);
  hang();
}

/// As a task does that is asked to stop. Throws when nobody ever asks.
void wait_for_stop(const Task& task) {
  wait_until([&] { return task.stop.stop_requested(); });
}

}  // namespace

// T: retry -------------------------------------------------------------------------------------------

TEST_CASE("T1 with processes only the failing item is retried up to its attempts") {
  const Test test;
  for_each_kind_of_input(40, [](const auto& items) {
    const Shared<Tally> calls;
    const auto fn = [&](int item, const Task& task) {
      const int call = ++(*calls)[item];
      if (call != task.attempt) throw std::logic_error("attempt " + std::to_string(task.attempt));
      if (item % 10 == 3 && call < 3) throw std::out_of_range("too early");
      if (item % 10 == 7) throw std::out_of_range(std::to_string(item) + " at attempt " + std::to_string(call));
      return item * 2;
    };
    const auto result = parallel_map(
        fn, items, {.workers = 2, .executor = Executor::process, .retry = Retry{.attempts = 4, .backoff = 0s}});
    CHECK(result.complete());
    const Ints attempts = attempts_of(result);
    for (int item = 0; item < 40; ++item) {
      const auto index = static_cast<std::size_t>(item);
      CHECK(attempts[index] == (item % 10 == 3 ? 3 : item % 10 == 7 ? 4 : 1));
      CHECK((*calls)[item] == attempts[index]);
      if (item % 10 == 7) {
        CHECK(error_of(result, index).template is<std::out_of_range>());
        CHECK(error_of(result, index).what() == std::to_string(item) + " at attempt 4");
      } else {
        CHECK(result.at(index) == item * 2);
      }
    }
    CHECK(result.failures().size() == 4);
  });
}

TEST_CASE("T1 with processes a retry happens in place before the next item") {
  const Test test;
  for_each_kind_of_input(4, [](const auto& items) {
    struct Call {
      int item;
      int attempt;
      pid_t process;
      bool operator==(const Call&) const = default;
    };
    const Shared<Log<Call>> calls;
    const auto fn = [&](int item, const Task& task) {
      calls->add({item, task.attempt, getpid()});
      if (item % 2 == 1) throw Boom("again");
      return item;
    };
    const Retry retry{.attempts = 3, .backoff = 1ms};
    CHECK_FALSE(parallel_map(fn, items, {.workers = 1, .executor = Executor::process, .retry = retry}).ok());
    const auto all = calls->all();
    REQUIRE(all.size() == 8);
    const pid_t worker = all[0].process;
    CHECK(worker != test_process);
    CHECK(all == std::vector<Call>{{0, 1, worker},
                                   {1, 1, worker},
                                   {1, 2, worker},
                                   {1, 3, worker},
                                   {2, 1, worker},
                                   {3, 1, worker},
                                   {3, 2, worker},
                                   {3, 3, worker}});
  });
}

TEST_CASE("T1 with processes an item in its backoff does not hold back the others") {
  const Test test;
  for_each_kind_of_input(10, [](const auto& items) {
    const Shared<std::atomic<int>> done;
    // Item 0 fails until all others are done.
    const auto fn = [&](int item) {
      if (item == 0 && *done < 9) throw Boom("not yet");
      if (item > 0) ++*done;
      return item;
    };
    const auto result = parallel_map(fn, items,
                                     {.workers = 2,
                                      .executor = Executor::process,
                                      .retry = Retry{.attempts = 100'000, .backoff = 100us, .max_delay = 1ms},
                                      .batch = Batch{.size = 10}});
    CHECK(result.ok());
  });
}

TEST_CASE("T2 with processes predicates see what they captured and the exception itself") {
  const Test test;
  for_each_kind_of_input(6, [](const auto& items) {
    struct Asked {
      std::atomic<int> retry_if{0};
      std::atomic<int> wait_from{0};
    };
    const Shared<Asked> asked;
    const std::string again = "try again";
    const auto owned = std::make_unique<int>(4);
    Retry retry{.attempts = 3, .backoff = 1h};
    retry.on = retry_on<std::system_error, Boom>;
    retry.retry_if = [&asked, again](const Boom& error) {
      ++asked->retry_if;
      return error.what() == again;
    };
    retry.wait_from = [&asked, &owned](const Error& error) {
      ++asked->wait_from;
      return error.is<std::system_error>() || *owned != 4 ? std::optional<Duration>{} : Duration{1};
    };
    const auto fn = [&](int item) -> int {
      if (item == 1) throw std::runtime_error(again);  // of no type in `on`
      if (item == 2) throw Boom("leave it");           // retry_if says no
      if (item == 3) throw Boom(again);                // three attempts
      return item;
    };
    const auto result = parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .retry = retry});
    CHECK(attempts_of(result) == Ints{1, 1, 1, 3, 1, 1});
    CHECK(result.failures().size() == 3);
    CHECK(asked->retry_if == 4);
    CHECK(asked->wait_from == 3);
  });
}

namespace {

/// The error and those nested in it.
std::vector<Error> chain_of(const Error& error) {
  std::vector<Error> all{error};
  try {
    error.rethrow();
  } catch (const std::exception& e) {
    try {
      std::rethrow_if_nested(e);
    } catch (...) {
      for (const Error& inner : chain_of(Error{std::current_exception()})) all.push_back(inner);
    }
  } catch (...) {
  }
  return all;
}

}  // namespace

TEST_CASE("T2 with processes a predicate that throws ends the item and both errors are found") {
  const Test test;
  for (const bool in_wait_from : {false, true}) {
    for (const bool by_crash : {false, true}) {
      const Shared<Tally> calls;
      Retry retry{.attempts = 5, .backoff = 0s};
      if (in_wait_from) {
        retry.wait_from = [](const Error&) -> std::optional<Duration> { throw std::domain_error("asked too much"); };
      } else {
        retry.retry_if = [](const Error&) -> bool { throw std::domain_error("asked too much"); };
      }
      const auto fn = [&](int item) {
        ++(*calls)[item];
        if (item == 1 && by_crash) crash();
        if (item == 1) throw std::out_of_range("the original");
        return item;
      };
      const auto result = parallel_map(fn, numbers(4), {.workers = 2, .executor = Executor::process, .retry = retry});
      CHECK(calls->first(4) == Ints{1, 1, 1, 1});
      CHECK(result.failures().size() == 1);
      CHECK(attempts_of(result) == Ints{1, 1, 1, 1});
      const auto errors = chain_of(error_of(result, 1));
      CHECK(std::ranges::any_of(errors, [](const Error& e) { return says(e.what(), "asked too much"); }));
      CHECK(std::ranges::any_of(errors, [](const Error& e) { return e.is<std::domain_error>(); }));
      CHECK(std::ranges::any_of(errors, [&](const Error& e) {
        return by_crash ? e.is<WorkerCrashed>() : e.is<std::out_of_range>() && says(e.what(), "the original");
      }));
    }
  }
}

TEST_CASE("T5 the wait that a server asks of one worker holds the others") {
  const Test test;
  constexpr auto wait = 400ms;
  for (const int attempts : {1, 2}) {  // also after the last attempt
    const Shared<std::atomic<SteadyClock::rep>> asked_at;
    const Shared<Log<std::pair<int, SteadyClock::rep>>> starts;
    const Shared<Gate> one_runs;
    Limiter limiter{RateLimit{1e6, 1s, 100}};
    Retry retry{.attempts = attempts};
    retry.wait_from = [&](const Boom&) {
      *asked_at = SteadyClock::now().time_since_epoch().count();
      return std::optional<Duration>{wait};
    };
    const auto fn = [&](int item, const Task& task) {
      starts->add({item, SteadyClock::now().time_since_epoch().count()});
      if (item == 0 && task.attempt == 1) {
        one_runs->wait();
        throw Boom("wait");
      }
      if (item == 1) {
        one_runs->open();
        // Until the pause is there (or so late that it is over).
        wait_until([&] {
          const SteadyClock::time_point asked{SteadyClock::duration{*asked_at}};
          return *asked_at != 0 && (limiter.wait_time() > 1ms || SteadyClock::now() > asked + wait);
        });
      }
      return item;
    };
    const auto result = parallel_map(
        fn, numbers(20), {.workers = 2, .executor = Executor::process, .rate_limit = limiter, .retry = retry});
    CHECK(result.failures().size() == (attempts == 1 ? 1 : 0));
    REQUIRE(*asked_at != 0);
    const SteadyClock::rep due = *asked_at + SteadyClock::duration{wait}.count();
    int held = 0;
    for (const auto& [item, start] : starts->all()) {
      if (start < *asked_at) continue;
      ++held;
      CHECK(start >= due);
    }
    CHECK(held == (attempts == 1 ? 18 : 19));
  }
}

TEST_CASE("T5 a crash is retried and attempts are counted across it") {
  const Test test;
  for_each_kind_of_input(20, [](const auto& items) {
    const Shared<Tally> calls;
    const auto fn = [&](int item, const Task& task) {
      ++(*calls)[item];
      if ((item == 0 || item == 13) && task.attempt < 3) crash();
      if (item == 7) crash();
      return item * 10 + task.attempt;
    };
    const Retry retry{.attempts = 4, .backoff = 1ms, .on = retry_on<WorkerCrashed>};
    const auto result = parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .retry = retry});
    const Ints attempts = attempts_of(result);
    for (int item = 0; item < 20; ++item) {
      const int expected = item == 0 || item == 13 ? 3 : item == 7 ? 4 : 1;
      CHECK(attempts[static_cast<std::size_t>(item)] == expected);
      CHECK((*calls)[item] == expected);
      if (item != 7) CHECK(result.at(static_cast<std::size_t>(item)) == item * 10 + expected);
    }
    REQUIRE(result.failures().size() == 1);
    const auto* crashed = error_of(result, 7).template get_if<WorkerCrashed>();
    REQUIRE(crashed != nullptr);
    CHECK(crashed->signal() == SIGKILL);
  });
}

TEST_CASE("T5 a task timeout is retried and so is every mix of failures") {
  const Test test;
  for_each_kind_of_input(8, [](const auto& items) {
    const Shared<Tally> calls;
    const auto fn = [&](int item, const Task& task) {
      ++(*calls)[item];
      if (item == 2 && task.attempt == 1) hang();
      if (item == 5) {
        if (task.attempt == 1) throw Boom("first");
        if (task.attempt == 2) hang();
        if (task.attempt == 3) crash();
        if (task.attempt == 4) throw 42;
      }
      return item * 10 + task.attempt;
    };
    const auto result = parallel_map(fn, items,
                                     {.workers = 2,
                                      .executor = Executor::process,
                                      .retry = Retry{.attempts = 5, .backoff = 0s},
                                      .task_timeout = 200ms});
    REQUIRE(result.ok());
    CHECK(list_of(result) == Ints{1, 11, 22, 31, 41, 55, 61, 71});
    CHECK(attempts_of(result) == Ints{1, 1, 2, 1, 1, 5, 1, 1});
    CHECK(calls->first(8) == Ints{1, 1, 2, 1, 1, 5, 1, 1});
  });
}

TEST_CASE("T5 the filter tells crashes and task timeouts from other failures") {
  const Test test;
  const auto fn = [](int item, const Task&) -> int {
    if (item == 0) throw Boom("thrown");
    if (item == 1) crash();
    if (item == 2) hang();
    return item;
  };
  const auto attempts = [&](ErrorFilter on) {
    const Retry retry{.attempts = 2, .backoff = 0s, .on = std::move(on)};
    return attempts_of(parallel_map(
        fn, numbers(4), {.workers = 2, .executor = Executor::process, .retry = retry, .task_timeout = 100ms}));
  };
  CHECK(attempts(retry_on<WorkerCrashed>) == Ints{1, 2, 1, 1});
  CHECK(attempts(retry_on<TaskTimeout>) == Ints{1, 1, 2, 1});
  CHECK(attempts(retry_on<WorkerCrashed, Boom>) == Ints{2, 2, 1, 1});  // it is asked where the Boom is still one
  CHECK(attempts({}) == Ints{2, 2, 2, 1});
}

TEST_CASE("T5 retry_if with captures is asked about crashes and task timeouts") {
  const Test test;
  for_each_kind_of_input(4, [](const auto& items) {
    int asked = 0;  // whoever asks about a crash, it is not the worker that crashed
    const int wanted = items.size() == 4 ? SIGUSR1 : 0;
    Retry retry{.attempts = 3, .backoff = 0s};
    retry.retry_if = [&asked, wanted](const WorkerCrashed& error) {
      ++asked;
      return error.signal() == wanted;
    };
    const auto fn = [](int item) {
      if (item == 1) raise(SIGUSR1);
      if (item == 2) raise(SIGUSR2);
      return item;
    };
    const auto result = parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .retry = retry});
    CHECK(attempts_of(result) == Ints{1, 3, 1, 1});
    CHECK(asked == 4);
    CHECK(result.failures().size() == 2);
  });
}

TEST_CASE("T4 with processes a stop ends the backoff at once and the last real error stays") {
  const Test test;
  for (const bool by_crash : {false, true}) {
    for_each_kind_of_input(3, [&](const auto& items) {
      const Shared<Gate> failed_once;
      std::stop_source stop;
      Retry retry{.attempts = 5, .backoff = 1h};
      retry.retry_if = [&](const Error&) {
        failed_once->open();
        return true;
      };
      const auto fn = [&](int item) {
        if (item == 0 && by_crash) crash();
        if (item == 0) throw std::out_of_range("the real one");
        if (item == 1) failed_once->wait();
        return item;
      };
      const auto result = parallel_map(fn, items,
                                       {.workers = 2,
                                        .executor = Executor::process,
                                        .retry = retry,
                                        .stop = stop.get_token(),
                                        .on_result = [&](const auto& item) {
                                          if (item.index == 1) stop.request_stop();
                                        }});
      CHECK(attempts_of(result)[0] == 1);
      CHECK(result.at(1) == 1);
      if (by_crash) {
        CHECK(error_of(result, 0).template is<WorkerCrashed>());
      } else {
        CHECK(error_of(result, 0).template is<std::out_of_range>());
        CHECK(error_of(result, 0).what() == "the real one");
      }
    });
  }
}

TEST_CASE("T4 with processes a timeout ends the backoffs of all workers and their real errors stay") {
  const Test test;
  for (const bool by_crash : {false, true}) {
    const auto fn = [&](int item) -> int {
      if (by_crash) crash();
      throw std::out_of_range("item " + std::to_string(item));
    };
    const auto result = parallel_map(
        fn, numbers(4),
        {.workers = 4, .executor = Executor::process, .retry = Retry{.attempts = 2, .backoff = 1h}, .timeout = 500ms});
    CHECK(result.complete());  // there is no item that never ran (R5)
    CHECK_FALSE(result.ok());
    CHECK(attempts_of(result) == Ints{1, 1, 1, 1});
    REQUIRE(result.failures().size() == 4);
    for (const auto& [index, error] : result.failures()) {
      CHECK((by_crash ? error.is<WorkerCrashed>() : error.what() == "item " + std::to_string(index)));
    }
  }
}

TEST_CASE("T4 with processes an abort ends the backoff and the last real error stays") {
  const Test test;
  for (const bool by_crash : {false, true}) {
    const Shared<Gate> failed_once;
    Retry retry{.attempts = 2, .backoff = 1h};
    retry.retry_if = [&](const Error& error) {
      if (error.is<std::logic_error>()) return false;
      failed_once->open();
      return true;
    };
    const auto fn = [&](int item) {
      if (item == 0 && by_crash) crash();
      if (item == 0) throw Boom("the real one");
      failed_once->wait();
      if (item == 1) throw std::logic_error("the last that max_errors allows");
      return item;
    };
    const auto result =
        parallel_map(fn, numbers(2), {.workers = 2, .executor = Executor::process, .retry = retry, .max_errors = 1});
    CHECK(result.aborted());
    CHECK(attempts_of(result) == Ints{1, 1});
    CHECK(error_of(result, 1).is<std::logic_error>());
    CHECK((by_crash ? error_of(result, 0).is<WorkerCrashed>() : error_of(result, 0).what() == "the real one"));
  }
}

// L: rate limit --------------------------------------------------------------------------------------

TEST_CASE("L1 L3 workers and the parent draw from one budget and every attempt draws") {
  const Test test;
  constexpr double rate = 200;
  constexpr int burst = 5;
  constexpr int items = 30;
  const Shared<Log<SteadyClock::rep>> grants;
  const Shared<Tally> calls;
  const auto granted = [&] { grants->add(SteadyClock::now().time_since_epoch().count()); };
  Limiter limiter{RateLimit{rate, 1s, burst}};
  const auto fn = [&](int item, const Task& task) {
    granted();
    ++(*calls)[item];
    if (item % 3 == 0 && task.attempt == 1) throw Boom("once more");
    if (item % 10 == 5 && task.attempt == 1) crash();
    return item;
  };
  const auto begin = SteadyClock::now().time_since_epoch().count();
  const auto result = parallel_map(fn, numbers(items),
                                   {.workers = 3,
                                    .executor = Executor::process,
                                    .rate_limit = limiter,
                                    .retry = Retry{.attempts = 2, .backoff = 0s},
                                    .on_progress = [&](auto...) {
                                      limiter.acquire();
                                      granted();
                                    }});
  CHECK(result.ok());
  auto all = grants->all();
  std::ranges::sort(all);
  CHECK(calls->total() == items + 10 + 2);  // of those that crash one also throws: 15
  CHECK(static_cast<int>(all.size()) == calls->total() + items);
  int above = 0;
  for (std::size_t count = 1; count <= all.size(); ++count) {
    const std::chrono::duration<double> since = SteadyClock::duration{all[count - 1] - begin};
    if (static_cast<double>(count) > burst + rate * since.count() + 1e-6) ++above;
  }
  CHECK(above == 0);
}

TEST_CASE("L4 with processes a run whose next token lies beyond its timeout ends at once") {
  const Test test;
  for_each_kind_of_input(6, [](const auto& items) {
    const Limiter limiter{RateLimit{1, 2h, 2}};
    const auto begin = SteadyClock::now();
    const auto result = parallel_map(
        itself, items, {.workers = 2, .executor = Executor::process, .rate_limit = limiter, .timeout = 1h});
    CHECK(SteadyClock::now() - begin < 10s);
    CHECK(result.timed_out());
    REQUIRE(result.size() >= 2);
    CHECK(result.ok_values().size() == 2);
    for (const auto& item : result.item_results()) CHECK(item.attempts == (item.ok() ? 1 : 0));
    for (const auto& [index, error] : result.failures()) CHECK(error.template is<TimeoutError>());
    CHECK(limiter.wait_time() <= 2h);  // the abandoned waits took nothing
    CHECK(limiter.wait_time() > 119min);
  });
}

TEST_CASE("L4 with processes a stop ends the waits for tokens and they take nothing") {
  const Test test;
  for_each_kind_of_input(6, [](const auto& items) {
    const Limiter limiter{RateLimit{1, 2h}};
    std::stop_source stop;
    const auto result = parallel_map(itself, items,
                                     {.workers = 2,
                                      .executor = Executor::process,
                                      .rate_limit = limiter,
                                      .stop = stop.get_token(),
                                      .on_result = [&](const auto&) { stop.request_stop(); }});
    CHECK(result.status() == RunStatus::cancelled);
    CHECK(result.ok_values().size() == 1);
    for (const auto& item : result.item_results()) CHECK(item.attempts == (item.ok() ? 1 : 0));
    CHECK(limiter.wait_time() <= 2h);
    CHECK(limiter.wait_time() > 119min);
  });
}

TEST_CASE("L4 with processes a timeout cuts the stream of tokens and what ran keeps its value") {
  const Test test;
  for_each_kind_of_input(100, [](const auto& items) {
    const auto begin = SteadyClock::now();
    const auto result = parallel_map(
        itself, items, {.workers = 2, .executor = Executor::process, .rate_limit = RateLimit{20}, .timeout = 300ms});
    const std::chrono::duration<double> took = SteadyClock::now() - begin;
    CHECK(result.timed_out());
    CHECK(result.ok_values().size() >= 1);
    CHECK(static_cast<double>(result.ok_values().size()) <= 1 + 20 * took.count());
    for (const auto& item : result.item_results()) {
      CHECK(item.ok() == (item.attempts == 1));
      if (item.ok()) CHECK(item.value() == static_cast<int>(item.index));
    }
  });
}

// W: window ------------------------------------------------------------------------------------------

TEST_CASE("W1 with processes at most batch size items are admitted and unresolved and no fewer can be") {
  const Test test;
  struct Counts {
    std::atomic<int> read{0};
    std::atomic<int> ended{0};  // by fn: a little before it is resolved
  };
  for (const std::size_t size : {0U, 5U, 1U}) {  // 0: twice as many as workers
    const int window = size == 0 ? 4 : static_cast<int>(size);
    const Shared<Counts> counts;
    int most = 0;
    SinglePass source{60, itself};
    source.on_read = [&](int) {
      ++counts->read;
      most = std::max(most, counts->read - counts->ended);
    };
    const auto fn = [&](int item) {
      wait_until([&] { return counts->read >= std::min(60, item / window * window + window); });
      ++counts->ended;
      return item;
    };
    const auto result = parallel_map(
        fn, source, {.workers = 2, .executor = Executor::process, .batch = Batch{.size = size, .chunk = 1}});
    CHECK(list_of(result) == numbers(60));
    CHECK(most <= window);
    CHECK(source.mistakes == 0);
    CHECK(source.reads == 60);
  }
}

TEST_CASE("W1 with processes admitted and unresolved items are counted until they are reported") {
  const Test test;
  int reported = 0;
  int most = 0;
  SinglePass source{200, itself};
  source.on_read = [&](int item) { most = std::max(most, item + 1 - reported); };
  const auto result = parallel_map(
      itself, source,
      {.workers = 2, .executor = Executor::process, .batch = Batch{.size = 7}, .on_result = [&](const auto&) {
         ++reported;
       }});
  CHECK(result.ok());
  CHECK(reported == 200);
  CHECK(most <= 7);
}

TEST_CASE("W1 with processes a slow item holds back none behind it within the window") {
  const Test test;
  for_each_kind_of_input(12, [](const auto& items) {
    const Shared<std::atomic<int>> done;
    const auto fn = [&](int item) {
      if (item == 3) wait_until([&] { return *done == 11; });
      if (item != 3) ++*done;
      return item;
    };
    const auto check = [&](const MapOptions<int, int>& options) {
      *done = 0;
      CHECK(list_of(parallel_map(fn, items, options)) == numbers(12));
    };
    check({.workers = 2, .executor = Executor::process, .batch = Batch{.size = 9, .chunk = 1}});
    check({.workers = 2, .executor = Executor::process, .retry = Retry{}, .batch = Batch{.size = 9}});
    check({.workers = 2, .executor = Executor::process, .batch = Batch{.size = 9}, .task_timeout = 1h});
    check({.workers = 2, .executor = Executor::process, .batch = Batch{.size = 9}, .on_progress = [](auto...) {}});
    // A policy asks for single items, whatever the chunk.
    check({.workers = 2, .executor = Executor::process, .retry = Retry{}, .batch = Batch{.size = 9, .chunk = 4}});
  });
}

TEST_CASE("W1 with processes at most batch size items of an inherited input run at once") {
  const Test test;
  const Shared<Crowd> crowd;
  const auto fn = [&](int item) {
    crowd->enter();
    dawdle();
    crowd->leave();
    return item;
  };
  CHECK(parallel_map(fn, numbers(20), {.workers = 4, .executor = Executor::process, .batch = Batch{.size = 2}}).ok());
  CHECK(crowd->most() <= 2);
}

TEST_CASE("W1 with processes every item runs once whatever the chunk") {
  const Test test;
  for_each_kind_of_input(500, [](const auto& items) {
    for (const std::size_t chunk : {0U, 1U, 3U, 8U, 100U, 10'000U}) {
      const Shared<Tally> calls;
      const auto fn = [&](int item) {
        ++(*calls)[item];
        return item;
      };
      const auto result = parallel_map(
          fn, items, {.workers = 3, .executor = Executor::process, .batch = Batch{.size = 64, .chunk = chunk}});
      CHECK(list_of(result) == numbers(500));
      CHECK(calls->first(500) == Ints(500, 1));
    }
  });
}

TEST_CASE("W2 with processes what a source throws leaves the call") {
  const Test test;
  struct SourceError {  // of the driver: it crosses no boundary, and needs no Codec
    int* at;
  };
  int at = 0;
  struct Counts {
    std::atomic<int> running{0};
    std::atomic<int> ended{0};
  };
  const Shared<Counts> counts;
  const auto fn = [&](int item, const Task& task) {
    if (item < 2) {
      ++counts->running;
      wait_for_stop(task);
      ++counts->ended;
    }
    return item;
  };
  for (const bool policy : {false, true}) {
    counts->running = counts->ended = 0;
    SinglePass source{100, itself};
    source.on_read = [&](int item) {
      if (item != 3) return;
      wait_until([&] { return counts->running == 2; });
      throw SourceError{&at};
    };
    MapOptions<int, int> options{.workers = 2, .executor = Executor::process, .batch = Batch{.chunk = 1}};
    if (policy) options.retry = Retry{};
    try {
      parallel_map(fn, source, options);
      FAIL("nothing was thrown");
    } catch (const SourceError& e) {
      CHECK(e.at == &at);
    }
    CHECK(waitpid(-1, nullptr, WNOHANG) == -1);
    CHECK(counts->ended == 2);
    CHECK(source.reads == 3);
  }
}

TEST_CASE("W2 with processes what a view throws in a worker leaves the call") {
  const Test test;
  const auto view = std::views::iota(0, 100) | std::views::transform([](int i) {
                      if (i == 40) throw std::out_of_range("item 40 cannot be made");
                      return i;
                    });
  const auto message = [&](const MapOptions<int, int>& options) -> std::string {
    try {
      parallel_map(itself, view, options);
    } catch (const std::out_of_range& e) {
      return e.what();
    }
    return "nothing";
  };
  const std::string expected = "item 40 cannot be made";
  CHECK(message({.workers = 2, .executor = Executor::process}) == expected);
  CHECK(message({.workers = 2, .executor = Executor::process, .batch = Batch{.chunk = 1}}) == expected);
  CHECK(message({.workers = 2, .executor = Executor::process, .retry = Retry{}}) == expected);
  CHECK(message({.workers = 2, .executor = Executor::process, .timeout = 1h}) == expected);
  CHECK(message({.workers = 2, .executor = Executor::process, .item_key = [](int i) { return ItemKey{i}; }}) ==
        expected);
}

TEST_CASE("W3 with processes an endless source ends with max_errors or a timeout or a stop") {
  const Test test;
  const auto endless = std::views::iota(0);
  const auto fn = [](int item) { return item % 2 == 0 ? item : throw Boom("odd"); };
  const auto aborted = parallel_map(fn, endless, {.workers = 2, .executor = Executor::process, .max_errors = 5});
  CHECK(aborted.aborted());
  CHECK(aborted.size() >= 10);
  CHECK(aborted.size() <= 30);

  const auto timed_out = parallel_map(itself, endless, {.workers = 2, .executor = Executor::process, .timeout = 50ms});
  CHECK(timed_out.timed_out());

  std::stop_source stop;
  const auto cancelled = parallel_map(itself, endless,
                                      {.workers = 2,
                                       .executor = Executor::process,
                                       .stop = stop.get_token(),
                                       .on_progress = [&](std::size_t done, std::size_t) {
                                         if (done == 20) stop.request_stop();
                                       }});
  CHECK(cancelled.status() == RunStatus::cancelled);
  CHECK(cancelled.size() >= 20);
}

// E: ending early ------------------------------------------------------------------------------------

TEST_CASE("E1 with processes nothing is admitted after the last failure that max_errors allows") {
  const Test test;
  for_each_kind_of_input(1000, [](const auto& items) {
    for (const bool by_crash : {false, true}) {
      const Shared<Tally> calls;
      const auto fn = [&](int item) -> int {
        ++(*calls)[item];
        if (by_crash) crash();
        throw Boom(std::to_string(item));
      };
      const auto result = parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .max_errors = 3});
      CHECK(result.aborted());
      CHECK_FALSE(result.ok());
      CHECK(result.size() <= 1000);
      CHECK_THROWS_AS(result.values(), Aborted);
      int real = 0;
      for (const auto& [index, error] : result.failures()) {
        if (error.template is<Aborted>()) {
          CHECK((*calls)[index] == 0);
        } else {
          ++real;
          CHECK((*calls)[index] == 1);
          CHECK((by_crash ? error.template is<WorkerCrashed>() : error.what() == std::to_string(index)));
        }
      }
      CHECK(real >= 3);
      CHECK(real <= 3 - 1 + 2 * 2);
      CHECK(calls->total() == real);
      CHECK(result.failures().size() == result.size());
    }
  });
}

TEST_CASE("E1 with processes running items are asked to stop and keep their outcome") {
  const Test test;
  for_each_kind_of_input(50, [](const auto& items) {
    for (const bool by_crash : {false, true}) {
      const Shared<std::atomic<int>> running;
      const auto fn = [&](int item, const Task& task) {
        if (item == 2) {
          wait_until([&] { return *running == 2; });
          if (by_crash) crash();
          throw Boom("the first failure");
        }
        ++*running;
        wait_for_stop(task);
        if (item == 1) throw std::out_of_range("its own");
        return item + 100;
      };
      const auto result = parallel_map(
          fn, items, {.workers = 3, .executor = Executor::process, .batch = Batch{.chunk = 1}, .max_errors = 1});
      CHECK(result.aborted());
      CHECK(result.at(0) == 100);
      CHECK(error_of(result, 1).template is<std::out_of_range>());
      CHECK(error_of(result, 2).template is<Aborted>() == false);
      for (std::size_t index = 3; index < result.size(); ++index) CHECK(error_of(result, index).template is<Aborted>());
    }
  });
}

TEST_CASE("E1 with processes failures are counted after retries") {
  const Test test;
  const auto fn = [](int item, const Task& task) { return task.attempt == 2 ? item : throw Boom("once"); };
  const auto result = parallel_map(
      fn, numbers(20),
      {.workers = 2, .executor = Executor::process, .retry = Retry{.attempts = 2, .backoff = 0s}, .max_errors = 1});
  CHECK(result.ok());
  const auto some = parallel_map([](int item) { return item % 5 == 0 ? throw Boom("fifth") : item; }, numbers(20),
                                 {.workers = 2, .executor = Executor::process, .max_errors = 5});
  CHECK(some.complete());
  CHECK(some.failures().size() == 4);
}

namespace {

/// The first `quick` items have values, the next ones were killed, one for each worker, and the rest never ran.
template <class Truncation, class R>
void check_cut(const MapResult<R>& result, std::size_t quick, std::size_t killed) {
  REQUIRE(result.size() >= quick + killed);
  const auto items = result.item_results();
  std::size_t interrupted = 0;
  for (const auto& item : items) {
    if (item.index < quick) {
      CHECK(item.ok());
      CHECK(item.attempts == 1);
      continue;
    }
    REQUIRE_FALSE(item.ok());
    CHECK(item.error().template is<Truncation>());
    CHECK_FALSE(item.error().template is<TaskTimeout>());
    CHECK(item.attempts <= 1);
    CHECK((item.duration > Duration::zero()) == (item.attempts == 1));
    if (item.attempts == 1) ++interrupted;
  }
  CHECK(interrupted == killed);
  CHECK_THROWS_AS(result.values(), Truncation);
}

}  // namespace

TEST_CASE("E2 a timeout kills items that never look and what has finished keeps its value") {
  const Test test;
  for_each_kind_of_input(200, [](const auto& items) {
    const auto check = [&](MapOptions<int, std::string> options, bool one_by_one) {
      options.timeout = 400ms;
      const Shared<Tally> calls;
      const auto fn = [&](int item) {
        ++(*calls)[item];
        if (item >= 100) hang();
        return std::to_string(item);
      };
      const auto begin = SteadyClock::now();
      const auto result = parallel_map(fn, items, options);
      const auto took = SteadyClock::now() - begin;
      CHECK(took >= 400ms);
      CHECK(took < 5s);
      CHECK(result.timed_out());
      // A worker that takes several items at once may have begun behind the first that hangs.
      if (one_by_one) check_cut<TimeoutError>(result, 100, *options.workers);
      for (std::size_t item = 0; item < 100; ++item) CHECK(result.at(item) == std::to_string(item));
      int ran = 0;
      for (const auto& item : result.item_results()) ran += item.attempts;
      CHECK(ran == calls->total());
    };
    check({.workers = 1, .executor = Executor::process}, true);
    check({.workers = 2, .executor = Executor::process, .batch = Batch{.size = 200, .chunk = 1}}, true);
    check({.workers = 2, .executor = Executor::process, .retry = Retry{}}, true);
    check({.workers = 2, .executor = Executor::process}, true);
  });
}

TEST_CASE("E2 with processes values that are made in place survive a timeout") {
  const Test test;
  const auto fn = [](int item) {
    if (item == 5000) hang();
    return item * 3L;
  };
  const auto result =
      parallel_map(fn, numbers(10'000), {.workers = 1, .executor = Executor::process, .timeout = 400ms});
  check_cut<TimeoutError>(result, 5000, 1);
  CHECK(result.at(4999) == 4999 * 3L);
  CHECK(error_of(result, 5000).what() != error_of(result, 5001).what());  // it was killed, the other never ran
}

TEST_CASE("E2 with processes a timeout of zero runs nothing") {
  const Test test;
  for (const bool keyed : {false, true}) {
    const Shared<std::atomic<int>> calls;
    MapOptions<int, int> options{.workers = 2, .executor = Executor::process, .timeout = 0s};
    options.on_result = [&](const auto&) { ++*calls; };
    options.on_progress = [&](auto...) { ++*calls; };
    options.worker_init = [&] { ++*calls; };
    if (keyed) {
      options.item_key = [&](int) {
        ++*calls;
        return ItemKey{};
      };
    }
    const auto fn = [&](int item) {
      ++*calls;
      return item;
    };
    const auto check = [](const auto& result, std::size_t size) {
      CHECK(result.timed_out());
      CHECK(result.size() == size);
      CHECK(result.failures().size() == size);
      for (const auto& item : result.item_results()) {
        CHECK(item.attempts == 0);
        CHECK(item.duration == Duration::zero());
        CHECK(item.error().template is<TimeoutError>());
      }
    };
    check(parallel_map(fn, numbers(20), options), 20);
    check(parallel_map(fn, std::list<int>{1, 2, 3}, options), 3);
    SinglePass source{20, itself};
    check(parallel_map(fn, source, options), 0);
    CHECK(source.reads == 0);
    CHECK(*calls == 0);
  }
}

TEST_CASE("E2 E3 a timeout or a stop also kills what an aborted run waits for") {
  const Test test;
  for_each_kind_of_input(6, [](const auto& items) {
    for (const bool by_timeout : {false, true}) {
      const Shared<Gate> hangs;
      std::stop_source stop;
      MapOptions<int, int> options{.workers = 2, .executor = Executor::process, .max_errors = 1};
      options.batch = Batch{.chunk = 1};
      if (by_timeout) {
        options.timeout = 300ms;
      } else {
        options.stop = stop.get_token();
        options.on_result = [&](const auto&) { stop.request_stop(); };
      }
      const auto fn = [&](int item) -> int {
        if (item == 0) {
          hangs->wait();
          throw Boom("the only one");
        }
        hangs->open();
        hang();
      };
      const auto result = parallel_map(fn, items, options);
      CHECK(result.aborted());  // the first reason stands (R5)
      REQUIRE(result.size() >= 2);
      CHECK(error_of(result, 0).what() == "the only one");
      CHECK(error_of(result, 1).template is<Aborted>());
      CHECK(attempts_of(result)[1] == 1);
    }
  });
}

TEST_CASE("E3 with processes a token that is stopped already runs nothing") {
  const Test test;
  std::stop_source stop;
  stop.request_stop();
  const Shared<std::atomic<int>> calls;
  const auto fn = [&](int item) {
    ++*calls;
    return item;
  };
  const MapOptions<int, int> options{.workers = 2, .executor = Executor::process, .stop = stop.get_token()};
  for (const auto& result : {parallel_map(fn, numbers(5), options), parallel_map(fn, std::list<int>(5), options)}) {
    CHECK(result.status() == RunStatus::cancelled);
    CHECK(result.failures().size() == 5);
    CHECK(attempts_of(result) == Ints(5, 0));
    CHECK_THROWS_AS(result.values(), Cancelled);
  }
  SinglePass source{5, itself};
  CHECK(parallel_map(fn, source, options).size() == 0);
  CHECK(source.reads == 0);
  CHECK(*calls == 0);
}

TEST_CASE("E3 a stop from another thread kills items that never look") {
  if (!may_fork_while_threads_run) return;
  const Test test;
  for_each_kind_of_input(20, [](const auto& items) {
    for (const bool policy : {false, true}) {
      const Shared<std::atomic<int>> hanging;
      std::stop_source stop;
      Meanwhile stopper{[&] {
        wait_until([&] { return *hanging == 2; });
        stop.request_stop();
      }};
      const auto fn = [&](int item) {
        if (item >= 6) {
          ++*hanging;
          hang();
        }
        return item;
      };
      MapOptions<int, int> options{.workers = 2, .executor = Executor::process, .stop = stop.get_token()};
      if (policy) options.retry = Retry{};
      const auto result = parallel_map(fn, items, options);
      stopper.join();
      CHECK(result.status() == RunStatus::cancelled);
      check_cut<Cancelled>(result, 6, 2);
    }
  });
}

TEST_CASE("E3 a stop from a callback kills items that never look") {
  const Test test;
  for_each_kind_of_input(20, [](const auto& items) {
    const Shared<Gate> hangs;
    std::stop_source stop;
    const auto fn = [&](int item) {
      if (item == 0) hangs->wait();
      if (item == 0) return 0;
      hangs->open();
      hang();
    };
    const auto result = parallel_map(
        fn, items,
        {.workers = 2, .executor = Executor::process, .stop = stop.get_token(), .on_result = [&](const auto& item) {
           if (item.index == 0) stop.request_stop();
         }});
    CHECK(result.status() == RunStatus::cancelled);
    REQUIRE(result.size() >= 2);
    CHECK(result.at(0) == 0);
    CHECK(attempts_of(result)[1] == 1);
    CHECK(error_of(result, 1).template is<Cancelled>());
  });
}

TEST_CASE("E3 with processes stop may be requested from the function") {
  const Test test;
  for_each_kind_of_input(1000, [](const auto& items) {
    for (const bool policy : {false, true}) {
      std::stop_source stop;
      const auto fn = [&](int item) {
        if (item == 5) stop.request_stop();
        return item;
      };
      MapOptions<int, int> options{.workers = 2, .executor = Executor::process, .stop = stop.get_token()};
      options.batch = Batch{.chunk = 1};
      if (policy) options.retry = Retry{};
      const auto result = parallel_map(fn, items, options);
      CHECK(result.status() == RunStatus::cancelled);
      CHECK(result.ok_values().size() < 1000);
      for (const auto& item : result.item_results()) {
        if (item.ok()) CHECK(item.value() == static_cast<int>(item.index));
        if (!item.ok()) CHECK(item.error().template is<Cancelled>());
      }
    }
  });
}

TEST_CASE("E4 with processes an attempt that takes too long is killed and nobody else is harmed") {
  const Test test;
  for_each_kind_of_input(30, [](const auto& items) {
    const Shared<Tally> calls;
    const auto fn = [&](int item) {  // takes no Task
      ++(*calls)[item];
      if (item % 10 == 4) hang();
      return item;
    };
    const auto result = parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .task_timeout = 100ms});
    CHECK(result.complete());
    CHECK(calls->first(30) == Ints(30, 1));
    CHECK(result.failures().size() == 3);
    for (const auto& item : result.item_results()) {
      CHECK(item.attempts == 1);
      if (item.index % 10 != 4) {
        CHECK(item.value() == static_cast<int>(item.index));
      } else {
        CHECK(item.error().template is<TaskTimeout>());
        CHECK(item.duration >= 100ms);
        CHECK(item.duration < 10s);
      }
    }
  });
}

TEST_CASE("E4 with processes late is late and a value that comes late is not heard") {
  const Test test;
  for_each_kind_of_input(100, [](const auto& items) {
    constexpr auto limit = 2ms;
    const auto fn = [&](int item) {
      const auto end = SteadyClock::now() + limit - 50us + item * 1us;
      while (SteadyClock::now() < end) {
      }
      return item;
    };
    const auto result = parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .task_timeout = limit});
    CHECK(result.complete());
    REQUIRE(result.size() == 100);
    for (const auto& item : result.item_results()) {
      CHECK(item.attempts == 1);
      CHECK(item.ok() == (item.duration <= limit));
      if (item.ok()) CHECK(item.value() == static_cast<int>(item.index));
      if (!item.ok()) CHECK(item.error().template is<TaskTimeout>());
    }
    for (std::size_t late = 50; late < 100; ++late) CHECK(failed(result, late));
  });
}

TEST_CASE("E4 with processes a task timeout counts for max_errors") {
  const Test test;
  const auto fn = [](int) -> int { hang(); };
  const auto result = parallel_map(
      fn, numbers(100), {.workers = 2, .executor = Executor::process, .task_timeout = 50ms, .max_errors = 2});
  CHECK(result.aborted());
  CHECK(error_of(result, 0).is<TaskTimeout>());
  CHECK(error_of(result, 99).is<Aborted>());
}

// R: results -----------------------------------------------------------------------------------------

TEST_CASE("R1 R3 R4 with processes a truncated run has an entry for every item and is never ok") {
  const Test test;
  const Shared<Gate> hangs;
  std::stop_source stop;
  const auto fn = [&](int item) -> int {
    if (item == 0) throw std::out_of_range("zero");
    if (item == 1) return 11;
    if (item == 2) {
      hangs->wait();
      return 22;
    }
    hangs->open();
    hang();
  };
  const auto result = parallel_map(
      fn, numbers(8),
      {.workers = 2, .executor = Executor::process, .stop = stop.get_token(), .on_result = [&](const auto& item) {
         if (item.index == 2) stop.request_stop();
       }});
  CHECK(result.status() == RunStatus::cancelled);
  CHECK_FALSE(result.ok());
  CHECK(result.size() == 8);
  CHECK(result.item_results().size() == 8);
  CHECK_THROWS_AS(result.at(0), std::out_of_range);
  CHECK(result.at(1) == 11);
  CHECK(result.at(2) == 22);
  for (std::size_t index = 3; index < 8; ++index) CHECK_THROWS_AS(result.at(index), Cancelled);
  CHECK_THROWS_AS(result.at(8), std::out_of_range);
  CHECK_THROWS_AS(result.values(), Cancelled);
  CHECK_THROWS_AS(result[1], Cancelled);
  CHECK_THROWS_AS(result.begin(), Cancelled);
  CHECK_THROWS_AS(result.throw_on_failure(), ExceptionGroup);
  CHECK(result.ok_values() == Ints{11, 22});
  REQUIRE(result.successes().size() == 2);
  CHECK((*std::ranges::next(result.successes().begin())).index == 2);
}

TEST_CASE("R2 R6 with processes failures are listed in input order whatever their completion order") {
  const Test test;
  for_each_kind_of_input(6, [](const auto& items) {
    const Shared<Gate> five_failed;
    const auto fn = [&](int item) {
      if (item == 1) {
        five_failed->wait();
        throw std::out_of_range("one");
      }
      if (item == 3) crash();
      if (item == 5) {
        five_failed->open();
        throw std::runtime_error("five");
      }
      return item;
    };
    const auto result =
        parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .batch = Batch{.size = 6, .chunk = 1}});
    CHECK(result.complete());
    CHECK_FALSE(result.ok());
    try {
      result.values();
      FAIL("nothing was thrown");
    } catch (const ExceptionGroup& group) {
      REQUIRE(group.failures().size() == 3);
      CHECK(group.failures()[0].index == 1);
      CHECK(group.failures()[1].index == 3);
      CHECK(group.failures()[2].index == 5);
      const std::string text = group.what();
      CHECK(says(text, "3 of 6"));
      CHECK(says(text, "[1] std::out_of_range: one"));
      CHECK(says(text, "[3] pyarallel::WorkerCrashed"));
      CHECK(says(text, "[5] std::runtime_error: five"));
    }
  });
}

TEST_CASE("R5 with processes a stop or a timeout that leaves no item unrun changes nothing") {
  const Test test;
  for_each_kind_of_input(5, [](const auto& items) {
    std::stop_source stop;
    std::size_t reported = 0;
    const auto stopped = parallel_map(
        itself, items,
        {.workers = 2, .executor = Executor::process, .stop = stop.get_token(), .on_result = [&](const auto&) {
           if (++reported == 5) stop.request_stop();
         }});
    CHECK(stopped.ok());
    CHECK(list_of(stopped) == numbers(5));
  });
}

TEST_CASE("R5 with processes the first reason to stop wins and the n-th failure aborts also on the last item") {
  const Test test;
  for_each_kind_of_input(5, [](const auto& items) {
    const Shared<std::atomic<int>> begun;  // what never began when the run is aborted would not run
    const auto fail_last = [&](int item) {
      if (item == 4) {
        wait_until([&] { return *begun == 4; });
        throw Boom("last");
      }
      ++*begun;
      return item;
    };
    const auto last = parallel_map(fail_last, items, {.workers = 2, .executor = Executor::process, .max_errors = 1});
    CHECK(last.aborted());
    CHECK(last.ok_values().size() == 4);

    std::stop_source stop;
    const auto fail_first = [](int item, const Task& task) {
      if (item == 0) throw Boom("first");
      wait_for_stop(task);
      return item;
    };
    const auto first = parallel_map(fail_first, items,
                                    {.workers = 2,
                                     .executor = Executor::process,
                                     .max_errors = 1,
                                     .stop = stop.get_token(),
                                     .on_progress = [&](auto...) { stop.request_stop(); }});
    CHECK(first.aborted());
    CHECK(error_of(first, 4).template is<Aborted>());
  });
}

TEST_CASE("R7 with processes results may be bool or move-only or over-aligned or without a default") {
  const Test test;
  struct alignas(64) Aligned {
    int number;
  };
  struct NoDefault {
    explicit NoDefault(int value) : number(value) {}
    int number;
  };
  for_each_kind_of_input(70, [](const auto& items) {
    constexpr std::size_t last = 69;
    const auto odd =
        parallel_map([](int i) { return i % 2 == 1; }, items, {.workers = 2, .executor = Executor::process});
    CHECK(odd[last] == true);
    auto pointers = parallel_map([](int i) { return std::make_unique<int>(i); }, items,
                                 {.workers = 2, .executor = Executor::process});
    REQUIRE(pointers.ok());
    CHECK(*pointers[last] == 69);
    const std::vector<std::unique_ptr<int>> values = std::move(pointers).values();
    CHECK(*values[1] == 1);
    const auto aligned =
        parallel_map([](int i) { return Aligned{i}; }, items, {.workers = 2, .executor = Executor::process});
    CHECK(aligned[last].number == 69);
    CHECK(reinterpret_cast<std::uintptr_t>(&aligned[1]) % 64 == 0);
    const auto no_default =
        parallel_map([](int i) { return NoDefault{i}; }, items, {.workers = 2, .executor = Executor::process});
    CHECK(no_default[last].number == 69);
    const auto nothing = parallel_map([](int) {}, items, {.workers = 2, .executor = Executor::process});
    CHECK(nothing.values().size() == 70);
  });
}

TEST_CASE("R8 with processes every item that ran has one attempt and a duration also in chunks") {
  const Test test;
  const auto check = [](const auto& result, std::size_t size) {
    REQUIRE(result.ok());
    REQUIRE(result.size() == size);
    std::size_t wrong = 0;
    for (const auto& item : result.item_results()) {
      if (item.attempts != 1 || item.duration <= Duration::zero() || item.duration > 30s) ++wrong;
    }
    CHECK(wrong == 0);
  };
  const Ints many = numbers(300'000);
  check(parallel_map(itself, many, {.workers = 2, .executor = Executor::process}), many.size());
  check(parallel_map(itself, many, {.workers = 2, .executor = Executor::process, .batch = Batch{.chunk = 1000}}),
        many.size());
  check(parallel_map(itself, many, {.workers = 1, .executor = Executor::process, .timeout = 1h}), many.size());
  check(parallel_map(itself, std::list<int>(2000), {.workers = 2, .executor = Executor::process}), 2000);
  check(parallel_map(itself, many | std::views::take(2000),
                     {.workers = 2, .executor = Executor::process, .retry = Retry{}}),
        2000);
}

TEST_CASE("R8 with processes attempts of what was killed are counted too") {
  const Test test;
  for_each_kind_of_input(4, [](const auto& items) {
    const auto fn = [](int item, const Task& task) {
      if (item == 1 && task.attempt == 1) throw Boom("once");
      if (item == 2 && task.attempt < 3) crash();
      if (item == 1 || item == 2) hang();
      return item;
    };
    const auto result = parallel_map(
        fn, items,
        {.workers = 3, .executor = Executor::process, .retry = Retry{.attempts = 5, .backoff = 0s}, .timeout = 500ms});
    CHECK(result.timed_out());
    CHECK(attempts_of(result) == Ints{1, 2, 3, 1});
    CHECK(error_of(result, 1).template is<TimeoutError>());
    CHECK(error_of(result, 2).template is<TimeoutError>());
  });
}

TEST_CASE("R8 with processes the duration is from the first start to the outcome") {
  const Test test;
  for_each_kind_of_input(3, [](const auto& items) {
    const auto fn = [](int item, const Task& task) {
      if (item == 1 && task.attempt == 1) throw Boom("once");
      if (item == 2 && task.attempt == 1) crash();
      return item;
    };
    const auto result = parallel_map(fn, items,
                                     {.workers = 3,
                                      .executor = Executor::process,
                                      .retry = Retry{.attempts = 2, .backoff = 100ms, .jitter = false}});
    REQUIRE(result.ok());
    const auto all = result.item_results();
    CHECK(all[0].duration < 100ms);
    CHECK(all[1].duration >= 100ms);
    CHECK(all[2].duration >= 100ms);
    CHECK(all[2].duration < 10s);
  });
}

// B: callbacks ---------------------------------------------------------------------------------------

TEST_CASE("B1 with processes callbacks run on the calling thread once for each item in completion order") {
  const Test test;
  for_each_kind_of_input(30, [](const auto& items) {
    const auto driver = std::this_thread::get_id();
    const Shared<Gate> one_reported;
    int elsewhere = 0;
    Ints reported;
    std::vector<std::size_t> done;
    std::set<std::size_t> totals;
    const auto fn = [&](int item) {
      if (item == 0) one_reported->wait();
      if (item == 7) throw Boom("seven");
      if (item == 8) crash();
      return item * 2;
    };
    const auto result = parallel_map(fn, items,
                                     {.workers = 2,
                                      .executor = Executor::process,
                                      .on_result =
                                          [&](const ItemResult<int>& item) {
                                            if (std::this_thread::get_id() != driver || in_worker()) ++elsewhere;
                                            if (item.attempts != 1 || item.duration <= 0s) ++elsewhere;
                                            if (item.ok() != (item.index != 7 && item.index != 8)) ++elsewhere;
                                            if (item.ok() && item.value() != static_cast<int>(item.index) * 2)
                                              ++elsewhere;
                                            if (item.index == 7 && !item.error().template is<std::runtime_error>())
                                              ++elsewhere;
                                            if (item.index == 8 && !item.error().template is<WorkerCrashed>())
                                              ++elsewhere;
                                            reported.push_back(static_cast<int>(item.index));
                                            if (item.index == 1) one_reported->open();
                                          },
                                      .on_progress =
                                          [&](std::size_t now, std::size_t total) {
                                            if (std::this_thread::get_id() != driver || in_worker()) ++elsewhere;
                                            done.push_back(now);
                                            totals.insert(total);
                                          }});
    CHECK(result.complete());
    CHECK(elsewhere == 0);
    const auto at = [&](int item) { return std::ranges::find(reported, item); };
    CHECK(at(1) < at(0));
    std::ranges::sort(reported);
    CHECK(reported == numbers(30));
    REQUIRE(done.size() == 30);
    for (std::size_t i = 0; i < 30; ++i) CHECK(done[i] == i + 1);
    CHECK(totals == std::set<std::size_t>{30});
  });
}

TEST_CASE("B1 with processes the total of an unsized input is what was pulled so far") {
  const Test test;
  SinglePass source{50, itself};
  std::size_t calls = 0;
  std::size_t wrong = 0;
  const auto result = parallel_map(
      itself, source,
      {.workers = 2, .executor = Executor::process, .on_progress = [&](std::size_t done, std::size_t total) {
         ++calls;
         if (done != calls || total != static_cast<std::size_t>(source.reads)) ++wrong;
       }});
  CHECK(result.ok());
  CHECK(calls == 50);
  CHECK(wrong == 0);
}

TEST_CASE("B1 with processes placeholders of a truncated run are not reported") {
  const Test test;
  for_each_kind_of_input(40, [](const auto& items) {
    std::set<std::size_t> reported;
    const auto record = [&](const auto& item) { reported.insert(item.index); };
    const auto check = [&](const auto& result, std::size_t killed) {
      std::set<std::size_t> ran;
      for (const auto& item : result.item_results()) {
        if (item.attempts > 0) ran.insert(item.index);
      }
      CHECK(ran.size() == reported.size() + killed);
      CHECK(std::ranges::includes(ran, reported));
      CHECK(ran.size() < 40);
      reported.clear();
    };
    const auto fn = [](int item) { return item < 10 ? item : throw Boom("fails"); };
    check(parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .max_errors = 2, .on_result = record}),
          0);
    const auto hangs = [](int item) {
      if (item >= 10) hang();
      return item;
    };
    check(parallel_map(hangs, items,
                       {.workers = 2, .executor = Executor::process, .timeout = 300ms, .on_result = record}),
          2);
  });
}

TEST_CASE("B2 with processes what a callback throws leaves the call and no later callback runs") {
  const Test test;
  struct CallbackError {  // crosses no boundary
    int* at;
  };
  int at = 0;
  for_each_kind_of_input(100, [&](const auto& items) {
    for (const bool in_progress : {false, true}) {
      const Shared<Crowd> inside;
      int calls = 0;
      const auto callback = [&] {
        if (++calls == 3) throw CallbackError{&at};
      };
      const auto fn = [&](int item) {
        inside->enter();
        inside->leave();
        return item;
      };
      MapOptions<int, int> options{.workers = 2, .executor = Executor::process};
      if (in_progress) options.on_progress = [&](auto...) { callback(); };
      if (!in_progress) options.on_result = [&](const auto&) { callback(); };
      try {
        parallel_map(fn, items, options);
        FAIL("nothing was thrown");
      } catch (const CallbackError& e) {
        CHECK(e.at == &at);
      }
      CHECK(calls == 3);
      CHECK(waitpid(-1, nullptr, WNOHANG) == -1);
    }
  });
}

TEST_CASE("B3 with processes item_key is called once on the driver before the item starts") {
  const Test test;
  for_each_kind_of_input(40, [](const auto& items) {
    const Shared<Tally> keyed;
    const Shared<std::atomic<int>> too_early;
    const auto driver = std::this_thread::get_id();
    int elsewhere = 0;
    const auto fn = [&](int item) {
      if ((*keyed)[item] != 1) ++*too_early;
      return item;
    };
    const auto result =
        parallel_map(fn, items,
                     {.workers = 2,
                      .executor = Executor::process,
                      .item_key =
                          [&](const int& item) {
                            if (std::this_thread::get_id() != driver || in_worker()) ++elsewhere;
                            ++(*keyed)[item];
                            return item % 2 == 0 ? ItemKey{std::int64_t{item / 4}} : ItemKey{std::to_string(item)};
                          },
                      .on_result =
                          [&](const auto& item) {
                            if (item.index == 3 && item.key != ItemKey{std::string("3")}) ++elsewhere;
                          }});
    CHECK(list_of(result) == numbers(40));
    CHECK(elsewhere == 0);
    CHECK(*too_early == 0);
    CHECK(keyed->first(40) == Ints(40, 1));
    const auto all = result.item_results();
    CHECK(all[6].key == ItemKey{std::int64_t{1}});
    CHECK(all[39].key == ItemKey{std::string("39")});
  });
}

TEST_CASE("B3 C3 random-access input is inherited whatever its items are") {
  const Test test;
  std::deque<NonMovable> items;
  for (int i = 0; i < 50; ++i) items.emplace_back(i);
  const NonMovable* const first = &items[0];
  const auto fn = [&](const NonMovable& item) { return item.value * 2 + (&item == first ? 1000 : 0); };
  const auto check = [](const MapResult<int>& result) {
    REQUIRE(result.ok());
    CHECK(result[0] == 1000);
    CHECK(result[49] == 98);
  };
  using Options = MapOptions<NonMovable, int>;
  check(parallel_map(fn, items, Options{.workers = 2, .executor = Executor::process}));
  check(parallel_map(fn, items, Options{.workers = 2, .executor = Executor::process, .retry = Retry{}}));
  const auto keyed =
      parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .item_key = [](const NonMovable& item) {
                                 return ItemKey{item.value};
                               }});
  check(keyed);
  CHECK(keyed.item_results()[7].key == ItemKey{7});

  const std::string text = "words that are views of something that the workers inherited";
  std::vector<std::string_view> words;
  for (std::size_t at = 0; at + 5 < text.size(); at += 5) words.push_back(std::string_view{text}.substr(at, 5));
  const auto copies = parallel_map([](std::string_view word) { return std::string{word}; }, words,
                                   {.workers = 2, .executor = Executor::process});
  CHECK(copies[1] == words[1]);
}

namespace {

pid_t initialized_process = 0;  // of this process

}  // namespace

TEST_CASE("B4 with processes worker_init runs once in each worker before its first item") {
  const Test test;
  for_each_kind_of_input(60, [](const auto& items) {
    for (const int way : {0, 1, 2}) {
      const Shared<Log<pid_t>> initialized;
      const Shared<std::array<std::atomic<pid_t>, 60>> ran_in;
      const Shared<std::atomic<int>> unready;
      MapOptions<int, int> options{.workers = 2, .executor = Executor::process};
      options.worker_init = [&] {
        initialized->add(getpid());
        initialized_process = getpid();
      };
      if (way == 1) options.max_tasks_per_worker = 10;
      if (way == 2) options.retry = Retry{.attempts = 2, .backoff = 0s};
      const auto fn = [&](int item, const Task& task) {
        if (initialized_process != getpid()) ++*unready;
        (*ran_in)[static_cast<std::size_t>(item)] = getpid();
        if (item % 20 == 3 && task.attempt == 1) crash();
        return item;
      };
      const auto result = parallel_map(fn, items, options);
      CHECK(result.complete());
      CHECK(result.failures().size() == (way == 2 ? 0 : 3));
      CHECK(*unready == 0);
      CHECK(initialized_process == 0);
      const auto all = initialized->all();
      const std::set<pid_t> processes(all.begin(), all.end());
      CHECK(processes.size() == all.size());
      CHECK_FALSE(processes.contains(test_process));
      for (const auto& process : *ran_in) CHECK(processes.contains(process));
      CHECK(all.size() >= (way == 1 ? 6 : 3));
    }
  });
}

TEST_CASE("B4 with processes what worker_init throws leaves the call") {
  const Test test;
  for_each_kind_of_input(20, [](const auto& items) {
    const Shared<std::atomic<int>> calls;
    const auto fn = [&](int item) {
      ++*calls;
      return item;
    };
    for (const bool policy : {false, true}) {
      MapOptions<int, int> options{.workers = 2, .executor = Executor::process};
      options.worker_init = [] { throw std::out_of_range("no licence"); };
      if (policy) options.retry = Retry{};
      try {
        parallel_map(fn, items, options);
        FAIL("nothing was thrown");
      } catch (const std::out_of_range& e) {
        CHECK(e.what() == std::string("no licence"));
      }
      CHECK(*calls == 0);
    }
  });
}

// C: calling -----------------------------------------------------------------------------------------

TEST_CASE("C2 C3 with processes ranges of every kind are inputs") {
  const Test test;
  namespace views = std::views;
  const auto twice = [](int item) { return 2 * item; };
  const auto mapped = [&](auto&& items) {
    return list_of(parallel_map(twice, items, {.workers = 2, .executor = Executor::process}));
  };
  const Ints doubled{2, 4, 6, 8, 10};
  Ints vector{1, 2, 3, 4, 5};
  const Ints constant = vector;
  CHECK(mapped(vector) == doubled);
  CHECK(mapped(constant) == doubled);
  CHECK(mapped(Ints(vector)) == doubled);
  CHECK(mapped(std::array{1, 2, 3, 4, 5}) == doubled);
  int c_array[]{1, 2, 3, 4, 5};
  CHECK(mapped(c_array) == doubled);
  CHECK(mapped(std::deque<int>{1, 2, 3, 4, 5}) == doubled);
  std::list<int> list{1, 2, 3, 4, 5};
  CHECK(mapped(list) == doubled);
  CHECK(mapped(std::as_const(list)) == doubled);
  CHECK(mapped(std::forward_list<int>{1, 2, 3, 4, 5}) == doubled);
  CHECK(mapped(std::set<int>{5, 3, 1, 2, 4}) == doubled);
  CHECK(mapped(views::iota(1, 6)) == doubled);
  CHECK(mapped(views::iota(1) | views::take(5)) == doubled);
  CHECK(mapped(views::iota(1) | views::take_while([](int i) { return i < 6; })) == doubled);
  CHECK(mapped(constant | views::transform(itself)) == doubled);
  CHECK(mapped(list | views::transform(itself)) == doubled);
  CHECK(mapped(vector | views::reverse) == Ints{10, 8, 6, 4, 2});
  CHECK(mapped(vector | views::filter([](int i) { return i % 2 == 1; })) == Ints{2, 6, 10});
  std::istringstream in{"1 2 3 4 5"};
  CHECK(mapped(std::ranges::istream_view<int>(in)) == doubled);
  SinglePass generator{5, [](int i) { return i + 1; }};
  CHECK(mapped(generator) == doubled);
  CHECK(generator.mistakes == 0);
  SinglePass lvalues{5, [&](int i) -> int& { return vector[static_cast<std::size_t>(i)]; }};
  CHECK(mapped(lvalues) == doubled);

  const auto name = [](const auto& entry) { return entry.first + std::to_string(entry.second); };
  const std::map<std::string, int> map{{"a", 1}, {"b", 2}};
  CHECK(list_of(parallel_map(name, map, {.workers = 2, .executor = Executor::process})) ==
        std::vector<std::string>{"a1", "b2"});
  CHECK(mapped(map | views::values) == Ints{2, 4});
  CHECK(list_of(parallel_map([](bool b) { return !b; }, std::vector<bool>{true, false, true},
                             {.workers = 2, .executor = Executor::process})) == std::vector<bool>{false, true, false});
}

TEST_CASE("C3 with processes a function may change its items and only the worker sees that") {
  const Test test;
  const auto change = [](int& item) { return ++item; };
  Ints vector{1, 2, 3};
  CHECK(list_of(parallel_map(change, vector, {.workers = 2, .executor = Executor::process})) == Ints{2, 3, 4});
  CHECK(vector == Ints{1, 2, 3});
  std::list<int> list{1, 2, 3};
  CHECK(list_of(parallel_map(change, list, {.workers = 2, .executor = Executor::process})) == Ints{2, 3, 4});
  CHECK(list == std::list<int>{1, 2, 3});
}

TEST_CASE("C3 with processes items of any size are sent") {
  const Test test;
  SinglePass source{40, [](int i) {
                      return std::vector<int>(static_cast<std::size_t>(i) * 20'000, i);  // up to 3 MiB
                    }};
  const auto sum = [](const Ints& item) { return std::accumulate(item.begin(), item.end(), 0L); };
  const auto result = parallel_map(sum, source, {.workers = 2, .executor = Executor::process});
  REQUIRE(result.ok());
  for (int i = 0; i < 40; ++i) CHECK(result[static_cast<std::size_t>(i)] == 20'000L * i * i);
}

TEST_CASE("C2 with processes an empty input is complete and starts no worker") {
  const Test test;
  std::stop_source stop;
  stop.request_stop();
  const Forks forks;
  const Shared<std::atomic<int>> calls;
  const auto fn = [&](int item) {
    ++*calls;
    return item;
  };
  for (const bool truncated : {false, true}) {
    MapOptions<int, int> options{.workers = 2, .executor = Executor::process, .worker_init = [&] { ++*calls; }};
    if (truncated) options.timeout = 0s;
    if (truncated) options.stop = stop.get_token();
    SinglePass source{0, itself};
    for (const auto& result : {parallel_map(fn, Ints{}, options), parallel_map(fn, std::list<int>{}, options),
                               parallel_map(fn, source, options)}) {
      CHECK(result.ok());
      CHECK(result.empty());
    }
  }
  CHECK(forks.count() == 0);
  CHECK(*calls == 0);
}

TEST_CASE("C4 with processes results are in input order whatever the completion order") {
  const Test test;
  for_each_kind_of_input(10, [](const auto& items) {
    const Shared<std::atomic<int>> done;
    // The later ones first, as far as two workers and a window of ten can.
    const auto fn = [&](int item) {
      if (item == 0) wait_until([&] { return *done == 9; });
      ++*done;
      return std::to_string(item);
    };
    const auto result =
        parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .batch = Batch{.size = 10, .chunk = 1}});
    for (std::size_t i = 0; i < 10; ++i) CHECK(result.at(i) == std::to_string(i));
  });
}

namespace {

struct Custom : std::exception {
  const char* what() const noexcept override { return "custom text"; }
};

}  // namespace

TEST_CASE("C5 with processes whatever is thrown becomes the error of its item") {
  const Test test;
  for_each_kind_of_input(6, [](const auto& items) {
    const auto fn = [](int item) -> int {
      if (item == 0) throw 42;
      if (item == 1) throw Custom{};
      if (item == 2) throw std::out_of_range("range");
      if (item == 3) throw std::string("text");
      if (item == 4) throw HttpError(503, "7", "busy");
      return item;
    };
    const auto check = [&](const MapOptions<int, int>& options) {
      const auto result = parallel_map(fn, items, options);
      CHECK(result.complete());
      CHECK(result.failures().size() == 5);
      const auto remote = [&](std::size_t index) {
        const auto* error = error_of(result, index).template get_if<RemoteError>();
        return error != nullptr ? error->type_name() + ": " + error->what() : "no RemoteError";
      };
      CHECK(says(remote(0), "int: "));
      CHECK(says(remote(1), "Custom: custom text"));
      CHECK(error_of(result, 2).template is<std::out_of_range>());
      CHECK(error_of(result, 2).what() == "range");
      CHECK(says(remote(3), "string"));
      const auto* http = error_of(result, 4).template get_if<HttpError>();
      REQUIRE(http != nullptr);
      CHECK(http->status() == 503);
      CHECK(http->retry_after() == "7");
      CHECK(result.at(5) == 5);
    };
    check({.workers = 2, .executor = Executor::process});
    check({.workers = 2, .executor = Executor::process, .retry = Retry{.attempts = 1}});
  });
}

TEST_CASE("C6 with processes bad options are refused before anything runs") {
  const Test test;
  const Forks forks;
  const auto complaint = [](MapOptions<int, int> options) -> std::string {
    options.executor = Executor::process;
    std::string text = "none";
    try {
      parallel_map(itself, numbers(3), options);
    } catch (const std::invalid_argument& e) {
      text = e.what();
    }
    CHECK_THROWS_AS(parallel_map(itself, std::list<int>{}, options), std::invalid_argument);  // nor anything to run
    return text;
  };
  CHECK(complaint({.workers = 0}) == "workers must be >= 1, got 0");
  CHECK(complaint({.max_errors = 0}) == "max_errors must be >= 1, got 0");
  CHECK(complaint({.max_tasks_per_worker = 0}) == "max_tasks_per_worker must be >= 1, got 0");
  CHECK(complaint({.retry = Retry{.attempts = 0}}) == "Retry: attempts must be >= 1, got 0");
  CHECK(says(complaint({.timeout = -1s}), "timeout must be >= 0"));
  CHECK(says(complaint({.task_timeout = -1s}), "task_timeout must be >= 0"));
  CHECK(says(complaint({.rate_limit = RateLimit{std::numeric_limits<double>::quiet_NaN()}}), "RateLimit: count"));
  CHECK(says(complaint({.rate_limit = RateLimit{1, 1s, 0}}), "RateLimit: burst must be >= 1, got 0"));
  CHECK(forks.count() == 0);
}

TEST_CASE("C6 processes need a Codec for results and for items that are sent") {
  const Test test;
  const Forks forks;
  const auto complaint = [](const auto& fn, const auto& items, const auto&... options) -> std::string {
    try {
      parallel_map(fn, items, options...);
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "none";
  };
  const Ints items{1, 2, 3};
  const auto pointer_to = [](const int& item) { return &item; };
  using ToPointer = MapOptions<int, const int*>;
  for (const std::string& text : {complaint(pointer_to, items, ToPointer{.executor = runtime(Executor::process)}),
                                  complaint(pointer_to, items, Options{.executor = Executor::process}),
                                  complaint(pointer_to, Ints{}, Options{.executor = Executor::process})}) {
    CHECK(text.starts_with("executor: Executor::process needs a Codec for the type that the function returns"));
  }
  CHECK(complaint(pointer_to, items, Options{.executor = Executor::process}, ToPointer{.executor = Executor::thread}) ==
        "none");

  const std::list<const int*> pointers{&items[0], &items[1]};
  const auto pointee = [](const int* item) { return *item; };
  CHECK(complaint(pointee, pointers, Options{.executor = Executor::process})
            .starts_with("executor: Executor::process sends the items of an input that is not random access"));
  CHECK(forks.count() == 0);
  const std::vector<const int*> inherited(pointers.begin(), pointers.end());
  CHECK(list_of(parallel_map(pointee, inherited, {.workers = 2, .executor = Executor::process})) == Ints{1, 2});
}

TEST_CASE("C9 with processes starmap calls with the elements of each tuple and every option works") {
  const Test test;
  const std::vector<std::pair<std::string, int>> pairs{{"a", 1}, {"b", 2}, {"c", 3}};
  const auto check = [](const auto& items) {
    const Shared<std::atomic<int>> inits;
    std::vector<std::size_t> progress;
    const auto fn = [](const std::string& name, int number, const Task& task) {
      if (task.attempt == 1 && number == 1) throw std::runtime_error(name);
      if (task.attempt == 1 && number == 2) crash();
      if (task.attempt == 1 && number == 3) hang();
      return name + std::to_string(number);
    };
    const auto result =
        parallel_starmap(fn, items,
                         {.workers = 2,
                          .executor = Executor::process,
                          .rate_limit = 1e6,
                          .retry = Retry{.attempts = 2, .backoff = 0s},
                          .timeout = 1h,
                          .task_timeout = 200ms,
                          .item_key = [](const auto& pair) { return ItemKey{pair.first}; },
                          .on_progress = [&](std::size_t done, std::size_t) { progress.push_back(done); },
                          .worker_init = [&] { ++*inits; }});
    CHECK(list_of(result) == std::vector<std::string>{"a1", "b2", "c3"});
    CHECK(attempts_of(result) == Ints{2, 2, 2});
    CHECK(progress == std::vector<std::size_t>{1, 2, 3});
    CHECK(*inits >= 2);
    CHECK(result.item_results()[1].key == ItemKey{std::string("b")});
  };
  check(pairs);
  check(std::map<std::string, int>(pairs.begin(), pairs.end()));
  const std::vector<std::tuple<int, int, int>> triples{{1, 2, 3}, {4, 5, 6}};
  CHECK(list_of(parallel_starmap([](int a, int b, int c) { return a + b * c; }, triples,
                                 Options{.workers = 2, .executor = Executor::process})) == Ints{7, 34});
}

TEST_CASE("C10 one worker process is another process and a sequential run is none") {
  const Test test;
  const auto where = [](int) { return getpid(); };
  for_each_kind_of_input(10, [&](const auto& items) {
    for (const bool policy : {false, true}) {
      MapOptions<int, pid_t> options{.workers = 1, .executor = Executor::process};
      if (policy) options.retry = Retry{};
      const Forks forks;
      const auto processes = list_of(parallel_map(where, items, options));
      CHECK(std::ranges::count(processes, test_process) == 0);
      CHECK(std::set<pid_t>(processes.begin(), processes.end()).size() == 1);
      CHECK(forks.count() == 1);
      options.executor = Executor::sequential;
      options.max_tasks_per_worker = 1;
      options.worker_memory_limit = 1;
      CHECK(list_of(parallel_map(where, items, options)) == std::vector<pid_t>(10, test_process));
      CHECK(forks.count() == 1);
    }
  });
}

TEST_CASE("C11 with processes there are never more workers than items") {
  const Test test;
  for_each_kind_of_input(3, [](const auto& items) {
    for (const bool policy : {false, true}) {
      MapOptions<int, std::size_t> options{.workers = 50, .executor = Executor::process, .batch = Batch{.chunk = 1}};
      if (policy) options.retry = Retry{};
      const Forks forks;
      const Shared<std::atomic<int>> arrived;
      const auto fn = [&](int, const Task& task) {
        ++*arrived;
        wait_until([&] { return *arrived == 3; });
        return task.worker;
      };
      const auto result = parallel_map(fn, items, options);
      auto workers = list_of(result);
      std::ranges::sort(workers);
      CHECK(workers == std::vector<std::size_t>{0, 1, 2});
      CHECK(forks.count() == 3);
    }
  });
}

TEST_CASE("C11 the default for processes is the number of CPUs") {
  const Test test;
  const auto count = static_cast<int>(available_parallelism());
  CHECK(default_workers(Executor::process) == available_parallelism());
  const Shared<Crowd> crowd;
  const Shared<std::atomic<int>> arrived;
  const auto fn = [&](int item) {
    crowd->enter();
    ++*arrived;
    wait_until([&] { return *arrived >= std::min(8 * count, item / count * count + count); });
    crowd->leave();
    return item;
  };
  const Forks forks;
  const auto result = parallel_map(fn, numbers(8 * count), {.executor = Executor::process, .batch = Batch{.chunk = 1}});
  CHECK(result.ok());
  CHECK(crowd->most() == count);
  CHECK(forks.count() == count);
}

TEST_CASE("Options that ask for processes are inherited and overridden") {
  const Test test;
  const auto where = [](int) { return getpid(); };
  const auto in_processes = [&](const auto&... options) {
    const auto processes = list_of(parallel_map(where, numbers(8), options...));
    return std::ranges::count(processes, test_process) == 0;
  };
  const Options shared{.workers = 2, .executor = Executor::process, .max_tasks_per_worker = 2};
  CHECK(in_processes(shared));
  {
    const Forks forks;
    CHECK(in_processes(shared));
    CHECK(forks.count() >= 4);
  }
  CHECK(in_processes(shared, MapOptions<int, pid_t>{.retry = Retry{}}));
  CHECK_FALSE(in_processes(shared, MapOptions<int, pid_t>{.executor = Executor::sequential}));
  CHECK_THROWS_AS(in_processes(shared, MapOptions<int, pid_t>{.executor = Executor::thread}), std::invalid_argument);
  CHECK(in_processes(Options{.workers = 2}, MapOptions<int, pid_t>{.executor = Executor::process}));
  CHECK(in_processes(MapOptions<int, pid_t>{.executor = runtime(Executor::process)}));
}
