// P1, P2, P5, P6, P7 and C8: what forked workers inherit, what their deaths cost, how results of any size come
// back, and calls in calls. (process_hygiene_test.cpp has what they do to the rest of the program.)
#include <grp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <optional>
#include <pyarallel.hpp>
#include <ranges>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/child.hpp"
#include "support/meanwhile.hpp"
#include "support/process_state.hpp"
#include "support/shared.hpp"
#include "support/single_pass.hpp"
#include "support/wait.hpp"
#include "support/watchdog.hpp"

using namespace pyarallel;
using namespace std::chrono_literals;
using pyarallel::detail::SharedMemory;
using support::die_by;
using support::in_child;
using support::Meanwhile;
using support::no_core_file;
using support::Parent;
using support::resident_memory;
using support::Shared;
using support::SinglePass;
using support::state_of_process;
using support::wait_until;
using support::Watchdog;

namespace {

constexpr std::size_t MiB = std::size_t{1} << 20;

/// How often each item began to run, in whichever process.
class Runs {
 public:
  explicit Runs(std::size_t items)
      : memory_(items * sizeof(std::atomic<int>)),
        counts_(::new(memory_.data()) std::atomic<int>[items]),
        size_(items) {}

  void add(std::size_t item) const { ++counts_[item]; }
  void add(int item) const { add(static_cast<std::size_t>(item)); }
  int of(std::size_t item) const { return counts_[item]; }
  bool each_once() const {
    return std::all_of(counts_, counts_ + size_, [](const std::atomic<int>& count) { return count == 1; });
  }

 private:
  SharedMemory memory_;
  std::atomic<int>* counts_;
  std::size_t size_;
};

/// The ways in which items come to workers: claimed by the workers in chunks, claimed one by one, handed out
/// by the driver, or pulled by the driver and sent.
enum class Way { chunks, one_by_one, keyed, pulled };
constexpr std::array ways{Way::chunks, Way::one_by_one, Way::keyed, Way::pulled};

/// fn(0) ... fn(count - 1) in forked workers.
template <class F>
auto map_ints(Way way, F fn, int count, MapOptions<int, result_t<F, std::vector<int>>> options = {}) {
  const auto numbers = std::views::iota(0, count);
  const std::vector<int> items(numbers.begin(), numbers.end());
  if (!options.workers) options.workers = 2;
  options.executor = Executor::process;
  if (way == Way::one_by_one && !options.on_progress) options.on_progress = [](std::size_t, std::size_t) {};
  if (way == Way::keyed) options.item_key = [](const int& i) { return ItemKey{i}; };
  if (way == Way::pulled) return parallel_map(fn, std::list<int>(items.begin(), items.end()), options);
  return parallel_map(fn, items, options);
}

/// "signal 9", "exit code 3", or the type of what else it is.
std::string fate(const Error& error) {
  const auto* crash = error.get_if<WorkerCrashed>();
  if (crash == nullptr) return error.type_name() + ": " + error.what();
  if (crash->signal() != 0) return "signal " + std::to_string(crash->signal());
  return "exit code " + std::to_string(crash->exit_code());
}

template <class R>
std::string fate(const MapResult<R>& result, std::size_t item) {
  for (const Failure& failure : result.failures()) {
    if (failure.index == item) return fate(failure.error);
  }
  return item < result.size() ? "value" : "no entry";
}

/// Endless recursion, so far as a compiler can tell.
[[gnu::noinline]] int recurse(int depth) {
  volatile char frame[4096];
  frame[0] = static_cast<char>(depth);
  if (depth == INT_MAX) return 0;
  return recurse(depth + 1) + frame[0];
}

/// A value of any size, made from its number. It repeats after a length that no buffer has, so that a mistake shows.
std::vector<char> pattern(std::size_t size, int number) {
  constexpr std::size_t period = 4099;
  std::vector<char> bytes(size);
  unsigned state = 12345U + static_cast<unsigned>(number);
  for (char& byte : std::span{bytes}.first(std::min(size, period))) {
    state = state * 1664525U + 1013904223U;
    byte = static_cast<char>(state >> 24U);
  }
  for (std::size_t filled = period; filled < size;) {
    const std::size_t length = std::min(filled, size - filled);
    std::memcpy(bytes.data() + filled, bytes.data(), length);
    filled += length;
  }
  return bytes;
}

/// Neither default-constructible nor copyable.
class Sealed {
 public:
  explicit Sealed(int number) : number_(std::make_unique<int>(number)) {}
  int number() const { return *number_; }

 private:
  std::unique_ptr<int> number_;
};

/// Large where it is made, small where it arrives.
struct Digest {
  const std::vector<char>* bytes = nullptr;
  bool right = false;
  std::string text = {};  // not to be placed as bytes
};

/// What all digests are made of.
const std::vector<char>& digested() {
  static const std::vector<char> bytes = pattern(8 * MiB, 0);
  return bytes;
}

/// Says in shared memory when it is encoded.
struct Announced {
  std::vector<char> bytes;
  std::atomic<bool>* encoded = nullptr;
};

/// Its bytes are worth nothing in another process.
struct Tripled {
  int number = 0;
  pid_t made_in = 0;
};

/// Some cannot be encoded, some not decoded.
struct Picky {
  int number;
  std::string text = {};  // not to be placed as bytes
};

struct Point {
  int x;
  double y;
  bool operator==(const Point&) const = default;
};

}  // namespace

template <>
struct pyarallel::Codec<Sealed> {
  static void encode(const Sealed& value, Bytes& out) { Codec<int>::encode(value.number(), out); }
  static Sealed decode(std::span<const std::byte>& in) { return Sealed{Codec<int>::decode(in)}; }
};

template <>
struct pyarallel::Codec<Picky> {
  static void encode(const Picky& value, Bytes& out) {
    Codec<int>::encode(value.number, out);
    if (value.number % 5 == 3) throw std::length_error("not encoded");
  }
  static Picky decode(std::span<const std::byte>& in) {
    const int number = Codec<int>::decode(in);
    if (number % 5 == 4) throw std::range_error("not decoded");
    return {number, {}};
  }
};

template <>
struct pyarallel::Codec<Tripled> {
  static void encode(const Tripled& value, Bytes& out) { Codec<int>::encode(3 * value.number, out); }
  static Tripled decode(std::span<const std::byte>& in) { return {Codec<int>::decode(in), getpid()}; }
};

template <>
struct pyarallel::Codec<Digest> {
  static void encode(const Digest& value, Bytes& out) {
    const auto bytes = std::as_bytes(std::span{*value.bytes});
    out.resize(bytes.size());
    std::memcpy(out.data(), bytes.data(), bytes.size());
  }
  static Digest decode(std::span<const std::byte>& in) {
    const bool right = in.size() == digested().size() && std::memcmp(in.data(), digested().data(), in.size()) == 0;
    in = {};
    return {nullptr, right, {}};
  }
};

template <>
struct pyarallel::Codec<Announced> {
  static void encode(const Announced& value, Bytes& out) {
    Codec<std::vector<char>>::encode(value.bytes, out);
    if (value.encoded != nullptr) *value.encoded = true;
  }
  static Announced decode(std::span<const std::byte>& in) { return {Codec<std::vector<char>>::decode(in), nullptr}; }
};

// P1: what workers inherit --------------------------------------------------------------------------------

TEST_CASE("P1 items run in forked processes of the caller") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const auto result = map_ints(
        way,
        [](int) {
          return std::pair{getpid(), getppid()};
        },
        50);
    REQUIRE(result.ok());
    for (const auto& [pid, parent] : result) {
      CHECK(pid != getpid());
      CHECK(parent == getpid());
    }
  }
}

TEST_CASE("P1 captures of any kind and large are inherited as they are when the call begins") {
  const Watchdog watchdog;
  const std::vector<char> large = pattern(50 * MiB, 1);
  auto owned = std::make_unique<std::string>("owned");
  const std::function<int(int)> twice = [](int i) { return 2 * i; };
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    int by_reference = static_cast<int>(way);
    const auto result = map_ints(
        way,
        [&](int i) {
          return *owned + std::to_string(twice(i)) + large[static_cast<std::size_t>(i)] + std::to_string(by_reference);
        },
        20);
    REQUIRE(result.ok());
    for (int i = 0; i < 20; ++i) {
      CHECK(result[static_cast<std::size_t>(i)] == "owned" + std::to_string(2 * i) +
                                                       large[static_cast<std::size_t>(i)] +
                                                       std::to_string(static_cast<int>(way)));
    }
  }
  const auto moved_in = [owned = std::move(owned)](int i) { return owned->size() + static_cast<std::size_t>(i); };
  const auto result = parallel_map(moved_in, std::views::iota(0, 20), {.workers = 2, .executor = Executor::process});
  CHECK(result[7] == 12);
}

TEST_CASE("P1 every kind of callable runs in workers") {
  const Watchdog watchdog;
  const MapOptions<Point, double> options{.workers = 2, .executor = Executor::process};
  const std::vector<Point> points{{1, 0.5}, {2, 1.5}};
  CHECK(parallel_map(&Point::y, points, options)[1] == 1.5);
  const auto add = [](double offset, const Point& point, const Task& task) {
    return offset + point.y + static_cast<double>(task.index);
  };
  CHECK(parallel_map(std::bind_front(add, 10.0), points, options)[1] == 12.5);
  const std::vector<std::tuple<int, std::string>> pairs{{1, "a"}, {2, "b"}};
  const auto joined = parallel_starmap([](int i, const std::string& text) { return text + std::to_string(i); }, pairs,
                                       {.workers = 2, .executor = Executor::process});
  CHECK(joined[1] == "b2");
}

TEST_CASE("P1 random-access items are inherited and need no Codec") {
  const Watchdog watchdog;
  struct Item {
    std::function<int()> make;
    std::unique_ptr<int> number;
    const char* text;
  };
  STATIC_REQUIRE_FALSE(Serializable<Item>);
  std::vector<Item> items;
  for (int i = 0; i < 30; ++i) items.push_back({[i] { return 3 * i; }, std::make_unique<int>(i), "text"});
  const auto fn = [](const Item& item) {
    return item.make() + *item.number + static_cast<int>(std::strlen(item.text));
  };
  const auto shared_out = parallel_map(fn, items, {.workers = 3, .executor = Executor::process});
  const auto handed_out =
      parallel_map(fn, items, {.workers = 3, .executor = Executor::process, .item_key = [](const Item& item) {
                                 return ItemKey{*item.number};
                               }});
  REQUIRE(shared_out.ok());
  REQUIRE(handed_out.ok());
  for (std::size_t i = 0; i < items.size(); ++i) {
    CHECK(shared_out[i] == static_cast<int>(4 * i + 4));
    CHECK(handed_out[i] == static_cast<int>(4 * i + 4));
  }
}

TEST_CASE("P1 a worker changes its own copy of items and captures") {
  const Watchdog watchdog;
  std::vector<int> items(20, 1);
  int captured = 5;
  const auto result = parallel_map(
      [&](int& item) {
        captured = 6;
        return ++item;
      },
      items, {.workers = 2, .executor = Executor::process});
  REQUIRE(result.ok());
  CHECK(result[19] == 2);
  CHECK(captured == 5);
  CHECK(items == std::vector<int>(20, 1));
}

TEST_CASE("P1 pulled items are sent with their Codec") {
  const Watchdog watchdog;
  SinglePass texts{300, [](int i) { return std::string(static_cast<std::size_t>(i) * 700, 'x'); }};
  const auto lengths = parallel_map([](const std::string& text) { return text.size(); }, texts,
                                    {.workers = 2, .executor = Executor::process});
  REQUIRE(lengths.ok());
  for (std::size_t i = 0; i < 300; ++i) CHECK(lengths[i] == i * 700);
  CHECK(texts.mistakes == 0);
  SinglePass sealed{50, [](int i) { return Sealed{i}; }};
  const auto numbers = parallel_map([](const Sealed& item) { return item.number(); }, sealed,
                                    {.workers = 2, .executor = Executor::process});
  REQUIRE(numbers.ok());
  for (int i = 0; i < 50; ++i) CHECK(numbers[static_cast<std::size_t>(i)] == i);
}

TEST_CASE("P1 pulled items without a Codec are refused at the call") {
  const Watchdog watchdog;
  struct Item {
    std::function<int()> make;
  };
  SinglePass items{3, [](int i) { return Item{[i] { return i; }}; }};
  const Shared<std::atomic<int>> ran;
  const auto fn = [&](const Item&) { ++*ran; };
  CHECK_THROWS_AS(parallel_map(fn, items, {.workers = 2, .executor = Executor::process}), std::invalid_argument);
  CHECK(*ran == 0);
  CHECK(items.reads == 0);
}

TEST_CASE("P1 no more workers are forked than there are items") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const Shared<std::atomic<int>> workers;
    const auto result = map_ints(way, [](int i) { return i; }, 3, {.workers = 50, .worker_init = [&] { ++*workers; }});
    CHECK(result.ok());
    CHECK(*workers <= 3);
    CHECK(*workers >= 1);
  }
}

TEST_CASE("P1 eight workers are eight items at the same time") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const Shared<std::atomic<int>> here;
    const auto meet = [&](int) {
      ++*here;
      wait_until([&] { return *here >= 8; });
    };
    CHECK(map_ints(way, meet, 8, {.workers = 8, .batch = Batch{.chunk = 1}}).ok());
  }
}

// P2: one item's crash costs that item only -----------------------------------------------------------------

TEST_CASE("P2 every way to die costs its item only and the error says how") {
  const Watchdog watchdog;
  struct Death {
    std::string expected;
    std::function<void()> die;
  };
  std::vector<Death> deaths{
      {"exit code 3", [] { std::exit(3); }},
      {"exit code 0", [] { std::exit(0); }},
      {"exit code 0", [] { _exit(0); }},
      {"exit code 7", [] { _exit(7); }},
      {"exit code 255", [] { _exit(255); }},
      {"exit code 4", [] { std::quick_exit(4); }},
      {"exit code 5", [] { std::_Exit(5); }},
      {"signal " + std::to_string(SIGABRT),
       [] {
         no_core_file();
         std::abort();
       }},
      {"signal " + std::to_string(SIGABRT),
       []() noexcept {
         no_core_file();
         std::terminate();
       }},
      {"signal " + std::to_string(SIGSEGV),
       [] {
         no_core_file();
         recurse(0);
       }},
      {"signal " + std::to_string(SIGSEGV),
       [] {
         no_core_file();
         void* const page = mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
         *static_cast<volatile char*>(page) = 1;
       }},
  };
  for (const int signal : {SIGHUP, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL, SIGUSR1, SIGSEGV,
                           SIGUSR2, SIGPIPE, SIGALRM, SIGTERM, SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF, SIGSYS}) {
    deaths.push_back({"signal " + std::to_string(signal), [signal] { die_by(signal); }});
  }
  for (const Way way : ways) {
    const int count = static_cast<int>(2 * deaths.size());
    const Runs runs(static_cast<std::size_t>(count));
    const auto result = map_ints(
        way,
        [&](int i) {
          runs.add(i);
          if (i % 2 == 1) deaths[static_cast<std::size_t>(i) / 2].die();
          return std::to_string(i);
        },
        count);
    CHECK(result.complete());
    REQUIRE(result.size() == static_cast<std::size_t>(count));
    CHECK(result.failures().size() == deaths.size());
    CHECK(runs.each_once());
    for (std::size_t i = 0; i < result.size(); ++i) {
      CAPTURE(static_cast<int>(way), i);
      if (i % 2 == 1) {
        CHECK(fate(result, i) == deaths[i / 2].expected);
      } else {
        CHECK(result.at(i) == std::to_string(i));
      }
    }
  }
}

TEST_CASE("P2 the text of a crash names the signal or the exit code") {
  const Watchdog watchdog;
  const auto result = map_ints(
      Way::chunks, [](int i) { i == 0 ? die_by(SIGSEGV) : _exit(7); }, 2);
  CHECK(result.failures()[0].error.what().find("signal 11") != std::string::npos);
  CHECK(result.failures()[1].error.what().find("exited with code 7") != std::string::npos);
}

TEST_CASE("P2 items handed out together with the one that crashes are neither lost nor run twice") {
  const Watchdog watchdog;
  static constexpr int count = 100'000;
  const auto crashes = [](int i) { return i % 4001 == 4000; };
  const auto check = [&](auto value_of, std::size_t chunk) {
    const Runs runs(count);
    const auto result = map_ints(Way::chunks,
                                 [&](int i) {
                                   runs.add(i);
                                   if (crashes(i)) _exit(9);
                                   return value_of(i);
                                 },
                                 count, {.batch = Batch{.chunk = chunk}});
    CHECK(result.complete());
    CHECK(runs.each_once());
    int wrong = 0;
    std::set<std::size_t> crashed;
    for (const Failure& failure : result.failures()) {
      wrong += fate(failure.error) != "exit code 9" || !crashes(static_cast<int>(failure.index));
      crashed.insert(failure.index);
    }
    CHECK(crashed.size() == count / 4001);
    for (const auto& success : result.successes()) wrong += success.value != value_of(static_cast<int>(success.index));
    CHECK(wrong == 0);
  };
  for (const std::size_t chunk : {0U, 1U, 100U}) {
    CAPTURE(chunk);
    check([](int i) { return i * 2L; }, chunk);
    check([](int i) { return std::to_string(i); }, chunk);
  }
}

TEST_CASE("P2 errors and crashes in one chunk are told apart") {
  const Watchdog watchdog;
  static constexpr int count = 20'000;
  const Runs runs(count);
  const auto result = map_ints(Way::chunks,
                               [&](int i) {
                                 runs.add(i);
                                 if (i % 1000 == 998) throw std::out_of_range("thrown");
                                 if (i % 1000 == 999) _exit(9);
                                 return i;
                               },
                               count, {.batch = Batch{.chunk = 500}});
  CHECK(runs.each_once());
  REQUIRE(result.failures().size() == 40);
  for (const Failure& failure : result.failures()) {
    CHECK(fate(failure.error) == (failure.index % 1000 == 998 ? "std::out_of_range: thrown" : "exit code 9"));
  }
}

TEST_CASE("P2 half of the items crash and the others come through") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const Runs runs(200);
    const auto result = map_ints(way,
                                 [&](int i) {
                                   runs.add(i);
                                   if (i % 4 < 2) _exit(2);
                                   return i;
                                 },
                                 200, {.workers = 3});
    CHECK(result.complete());
    CHECK(runs.each_once());
    CHECK(result.failures().size() == 100);
    for (const auto& success : result.successes()) {
      CHECK(success.index % 4 >= 2);
      CHECK(success.value == static_cast<int>(success.index));
    }
  }
}

TEST_CASE("P2 all items may crash and there are still as many answers") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const auto result = map_ints(
        way, [](int) { _exit(2); }, 60);
    CHECK(result.complete());
    CHECK(result.failures().size() == 60);
    for (const Failure& failure : result.failures()) CHECK(fate(failure.error) == "exit code 2");
  }
}

TEST_CASE("P2 a crash that is retried has its attempts and its value") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const Runs runs(30);
    const auto result = map_ints(way,
                                 [&](int i, const Task& task) {
                                   runs.add(i);
                                   if (i % 3 == 0 && task.attempt < 3) die_by(SIGSEGV);
                                   return task.attempt;
                                 },
                                 30, {.retry = Retry{.attempts = 3, .backoff = 0ns, .on = retry_on<WorkerCrashed>}});
    REQUIRE(result.ok());
    const auto receipts = result.item_results();
    for (std::size_t i = 0; i < 30; ++i) {
      CHECK(result[i] == (i % 3 == 0 ? 3 : 1));
      CHECK(receipts[i].attempts == result[i]);
      CHECK(runs.of(i) == result[i]);
    }
  }
}

TEST_CASE("P2 a worker that somebody kills while it runs costs its item only") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    struct Board {
      std::atomic<pid_t> victim{0};
    };
    const Shared<Board> board;
    const Runs runs(20);
    const auto result = map_ints(way,
                                 [&](int i) {
                                   runs.add(i);
                                   if (i == 4) {
                                     board->victim = getpid();
                                     while (true) pause();
                                   }
                                   if (i == 5) {
                                     wait_until([&] { return board->victim != 0; });
                                     kill(board->victim, SIGKILL);
                                   }
                                   return i;
                                 },
                                 20, {.batch = Batch{.chunk = 1}});
    CHECK(result.failures().size() == 1);
    CHECK(fate(result, 4) == "signal 9");
    CHECK(runs.each_once());
  }
}

TEST_CASE("P2 a worker that somebody kills while it is idle costs nothing") {
  const Watchdog watchdog;
  static constexpr int count = 60;
  const Shared<std::atomic<pid_t>> last;
  const Runs runs(count);
  SinglePass source{count, [](int i) { return i; }};
  source.on_read = [&](int i) {
    if (i == 0) return;
    const pid_t pid = *last;  // with a window of one item, it has nothing to do
    if (i % 2 == 0) wait_until([&] { return state_of_process(pid) == 'S'; });  // else it is about to sleep
    kill(pid, SIGKILL);
    if (i % 3 == 0) wait_until([&] { return state_of_process(pid) == 'Z'; });
  };
  const auto result = parallel_map(
      [&](int i) {
        runs.add(i);
        *last = getpid();
        return i;
      },
      source, {.workers = 1, .executor = Executor::process, .batch = Batch{.size = 1}});
  CHECK(result.complete());
  // One that is killed between the item before and its sleep may have the next in hand.
  for (const Failure& failure : result.failures()) CHECK(fate(failure.error) == "signal 9");
  for (std::size_t i = 0; i < count; i += 2) CHECK(fate(result, i) == "value");
  CHECK(runs.each_once());
}

TEST_CASE("P2 a worker killed in the middle of a result of 100 MiB costs its item only") {
  const Watchdog watchdog;
  for (const bool retried : {false, true}) {
    struct Board {
      std::atomic<pid_t> victim{0};
      std::atomic<bool> driver_is_busy{false};
      std::atomic<bool> encoded{false};
      std::atomic<int> runs{0};
    };
    const Shared<Board> board;
    MapOptions<int, Announced> options;
    // While the driver is in here nobody takes the frame out: the worker stands still in the middle of it.
    options.on_result = [&](const ItemResult<Announced>& item) {
      if (item.index != 1) return;
      board->driver_is_busy = true;
      wait_until([&] { return board->encoded && state_of_process(board->victim) == 'S'; });
      kill(board->victim, SIGKILL);
    };
    if (retried) options.retry = Retry{.attempts = 2, .backoff = 0ns, .on = retry_on<WorkerCrashed>};
    const auto result = map_ints(
        Way::one_by_one,
        [&](int i) -> Announced {
          if (i != 0) return {pattern(10, i), nullptr};
          if (++board->runs > 1) return {pattern(100 * MiB, i), nullptr};
          board->victim = getpid();
          wait_until([&] { return board->driver_is_busy.load(); });
          return {pattern(100 * MiB, i), &board->encoded};
        },
        12, options);
    CHECK(result.complete());
    CHECK(result.failures().size() == (retried ? 0 : 1));
    CHECK(fate(result, 0) == (retried ? "value" : "signal 9"));
    if (retried) CHECK(result.at(0).bytes == pattern(100 * MiB, 0));
    for (std::size_t i = 1; i < 12; ++i) CHECK(result.at(i).bytes == pattern(10, static_cast<int>(i)));
  }
}

TEST_CASE("P2 a worker killed in the middle of an item of 100 MiB costs nothing") {
  const Watchdog watchdog;
  struct Board {
    std::atomic<pid_t> first{0};
    std::atomic<pid_t> second{0};
  };
  const Shared<Board> board;
  const Runs runs(6);
  std::size_t resolved = 0;
  SinglePass source{6, [](int i) { return pattern(i == 1 ? 100 * MiB : 10, i); }};
  MapOptions<std::vector<char>, std::size_t> options{.workers = 2, .executor = Executor::process};
  options.batch = Batch{.size = 2};
  options.worker_init = [&] {
    pid_t nobody = 0;
    if (!board->first.compare_exchange_strong(nobody, getpid())) board->second = getpid();
  };
  options.on_result = [&](const ItemResult<std::size_t>& item) {
    ++resolved;
    if (item.index != 0) return;
    // The driver is the one that feeds the large item, so whoever has it waits in the middle, or before it.
    wait_until([&] { return board->second != 0; });
    for (const pid_t worker : {board->first.load(), board->second.load()}) {
      wait_until([&] { return state_of_process(worker) == 'S'; });
    }
    kill(board->first, SIGKILL);
    kill(board->second, SIGKILL);
  };
  const auto result = parallel_map(
      [&](const std::vector<char>& bytes, const Task& task) {
        runs.add(task.index);
        // So that another worker comes for the large one.
        if (task.index == 0) wait_until([&] { return board->second != 0; });
        if (bytes != pattern(bytes.size(), static_cast<int>(task.index))) throw std::runtime_error("damaged");
        return bytes.size();
      },
      source, options);
  CHECK(result.ok());
  CHECK(resolved == 6);
  CHECK(runs.each_once());
  CHECK(result.at(1) == 100 * MiB);
}

TEST_CASE("P2 workers that die at any moment lose and double nothing") {
  const Watchdog watchdog;
  static constexpr int count = 30'000;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const Runs runs(count);
    const Shared<std::atomic<unsigned>> workers;
    const auto die_soon = [&] {
      // SIGALRM, in the middle of whatever the worker does then.
      const unsigned number = ++*workers;
      if (number > 60) return;  // so that the test ends soon on a slow machine too
      const unsigned random = number * 2654435761U >> 16U;
      const itimerval time{{0, 0}, {0, static_cast<suseconds_t>(1000 + random % 6000)}};
      setitimer(ITIMER_REAL, &time, nullptr);
    };
    const auto result = map_ints(way,
                                 [&](int i) {
                                   runs.add(i);
                                   const std::string text(static_cast<std::size_t>(i % 100), 'x');
                                   return text + std::to_string(i);
                                 },
                                 count, {.worker_init = die_soon});
    CHECK(result.complete());
    CHECK(*workers > 1);
    CHECK(result.failures().size() < *workers);
    std::set<std::size_t> crashed;
    for (const Failure& failure : result.failures()) {
      CHECK(fate(failure.error) == "signal " + std::to_string(SIGALRM));
      crashed.insert(failure.index);
    }
    int wrong = 0;
    for (const auto& success : result.successes()) {
      wrong += success.value != std::string(success.index % 100, 'x') + std::to_string(success.index);
      wrong += runs.of(success.index) != 1;
    }
    for (const std::size_t item : crashed) wrong += runs.of(item) > 1;
    CHECK(wrong == 0);
    CHECK(result.successes().size() + crashed.size() == count);
  }
}

TEST_CASE("P2 a stopped worker costs its item when task_timeout comes") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const Runs runs(12);
    const auto result = map_ints(way,
                                 [&](int i) {
                                   runs.add(i);
                                   if (i == 3) raise(SIGSTOP);
                                   return i;
                                 },
                                 12, {.task_timeout = 300ms});
    CHECK(result.complete());
    REQUIRE(result.failures().size() == 1);
    CHECK(result.failures()[0].index == 3);
    CHECK(result.failures()[0].error.is<TaskTimeout>());
    CHECK(runs.each_once());
  }
}

TEST_CASE("P2 worker_memory_limit fails the hungry item only") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const auto result = map_ints(way,
                                 [](int i) {
                                   const std::vector<char> food(i == 5 ? 512 * MiB : MiB, 'x');
                                   return food.size();
                                 },
                                 12, {.worker_memory_limit = 128 * MiB});
    CHECK(result.complete());
    REQUIRE(result.failures().size() == 1);
    CHECK(result.failures()[0].index == 5);
    const Error& error = result.failures()[0].error;
    CHECK((error.is<std::bad_alloc>() || error.is<WorkerCrashed>()));
  }
}

TEST_CASE("P2 worker_memory_limit counts what is beyond the inherited") {
  const Watchdog watchdog;
  const std::vector<char> inherited(300 * MiB, 'x');
  const auto result = map_ints(
      Way::chunks, [&](int i) { return std::vector<char>(16 * MiB, inherited[static_cast<std::size_t>(i)])[MiB]; }, 8,
      {.worker_memory_limit = 128 * MiB});
  CHECK(result.ok());
}

TEST_CASE("P2 max_tasks_per_worker replaces workers and runs every item once") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    for (const std::size_t most : {1U, 3U, 7U}) {
      CAPTURE(static_cast<int>(way), most);
      const Runs runs(40);
      const auto result = map_ints(way,
                                   [&](int i) {
                                     runs.add(i);
                                     return getpid();
                                   },
                                   40, {.max_tasks_per_worker = most});
      REQUIRE(result.ok());
      CHECK(runs.each_once());
      std::set<pid_t> workers(result.begin(), result.end());
      CHECK(workers.size() >= (40 + most - 1) / most);
      for (const pid_t worker : workers) {
        CHECK(static_cast<std::size_t>(std::count(result.begin(), result.end(), worker)) <= most);
      }
    }
  }
}

TEST_CASE("P2 workers that die in worker_init again and again end the run with an error that says so") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const Shared<std::atomic<int>> workers;
    const Shared<std::atomic<int>> ran;
    const auto die = [&] {
      ++*workers;
      _exit(6);
    };
    try {
      map_ints(way, [&](int) { ++*ran; }, 1000, {.worker_init = die});
      FAIL("the call returned");
    } catch (const WorkerCrashed& crash) {
      CHECK(crash.exit_code() == 6);
      CHECK(std::string(crash.what()).find("before their first item") != std::string::npos);
    }
    CHECK(*ran == 0);
    CHECK(*workers < 100);
  }
}

TEST_CASE("P2 a worker_init that dies now and then costs nothing") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const Shared<std::atomic<int>> workers;
    const Runs runs(100);
    const auto die_first = [&] {
      if (++*workers <= 4) _exit(6);
    };
    const auto result = map_ints(way, [&](int i) { runs.add(i); }, 100, {.worker_init = die_first});
    CHECK(result.ok());
    CHECK(runs.each_once());
  }
}

TEST_CASE("P2 what worker_init throws leaves the call") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const Shared<std::atomic<int>> ran;
    const auto fail = [] { throw std::out_of_range("not today"); };
    CHECK_THROWS_WITH(map_ints(way, [&](int) { ++*ran; }, 100, {.worker_init = fail}), "not today");
    CHECK_THROWS_AS(map_ints(way, [&](int) { ++*ran; }, 100, {.worker_init = fail}), std::out_of_range);
    CHECK(*ran == 0);
  }
}

TEST_CASE("P2 worker_init runs once in each worker before its items") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const Shared<std::atomic<int>> workers;
    int number = 0;  // each worker has its own
    const auto result = map_ints(way, [&](int i) { return i == 20 ? (_exit(1), 0) : number; }, 50,
                                 {.worker_init = [&] { number = number == 0 ? ++*workers : -1; }});
    for (const auto& success : result.successes()) {
      CHECK(success.value >= 1);
      CHECK(success.value <= *workers);
    }
    CHECK(result.failures().size() == 1);
  }
}

TEST_CASE("P2 a crash ends a run with max_errors as any failure") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const auto result = map_ints(way, [](int) { _exit(1); }, 1000, {.max_errors = 3});
    CHECK(result.aborted());
    const auto crashed = std::ranges::count_if(
        result.failures(), [](const Failure& failure) { return failure.error.is<WorkerCrashed>(); });
    CHECK(crashed >= 3);
    CHECK(crashed <= 3 - 1 + 4);
  }
}

// P5: results of any size -----------------------------------------------------------------------------------

TEST_CASE("P5 results of every kind come back") {
  const Watchdog watchdog;
  static constexpr int count = 500;
  const auto check = [](auto value_of) {
    for (const Way way : ways) {
      CAPTURE(static_cast<int>(way));
      const auto result = map_ints(way, value_of, count);
      REQUIRE(result.ok());
      int wrong = 0;
      for (int i = 0; i < count; ++i) wrong += result[static_cast<std::size_t>(i)] != value_of(i);
      CHECK(wrong == 0);
    }
  };
  check([](int i) { return i; });
  check([](int i) { return i % 3 == 0; });
  check([](int i) { return 0.5 * i; });
  check([](int i) { return Point{i, 0.5 * i}; });
  check([](int i) { return std::array<long, 5>{i, 2L * i, 3, 4, 5}; });
  check([](int i) { return std::string(static_cast<std::size_t>(i), 'x'); });
  check([](int i) { return std::vector<std::string>(static_cast<std::size_t>(i % 20), std::to_string(i)); });
  check([](int i) { return i % 2 == 0 ? std::optional<std::string>{} : std::optional<std::string>{"odd"}; });
  check([](int i) { return std::pair{i, std::to_string(i)}; });
}

TEST_CASE("P5 functions without a result have results all the same") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    const Runs runs(100);
    const auto result = map_ints(
        way, [&](int i) { runs.add(i); }, 100);
    STATIC_REQUIRE(std::is_same_v<decltype(result), const MapResult<std::monostate>>);
    CHECK(result.ok());
    CHECK(result.size() == 100);
    CHECK(runs.each_once());
  }
}

TEST_CASE("P5 results that can be neither copied nor made from nothing come back by their Codec") {
  const Watchdog watchdog;
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    auto result = map_ints(
        way, [](int i) { return Sealed{i}; }, 200);
    REQUIRE(result.ok());
    const std::vector<Sealed> values = std::move(result).values();
    for (int i = 0; i < 200; ++i) CHECK(values[static_cast<std::size_t>(i)].number() == i);
    const auto pointers = map_ints(
        way, [](int i) { return std::make_unique<std::string>(std::to_string(i)); }, 200);
    REQUIRE(pointers.ok());
    CHECK(*pointers[123] == "123");
  }
}

TEST_CASE("P5 results of all sizes from nothing to 3 MiB") {
  const Watchdog watchdog;
  std::vector<std::size_t> sizes;
  for (std::size_t size = 0; size < 20; ++size) sizes.push_back(size);
  for (std::size_t power = 256; power <= 2 * MiB; power *= 2) {
    for (std::size_t offset = 0; offset < 5; ++offset) sizes.push_back(power - 2 + offset);
    sizes.push_back(power - 56);
    sizes.push_back(power - 48);
  }
  sizes.push_back(3 * MiB);
  sizes.push_back(3 * MiB - 1);
  for (const Way way : ways) {
    const auto value_of = [&](int i) { return pattern(sizes[static_cast<std::size_t>(i)], i); };
    const auto result = map_ints(way, value_of, static_cast<int>(sizes.size()), {.workers = 3});
    REQUIRE(result.ok());
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      CAPTURE(static_cast<int>(way), i, sizes[i]);
      CHECK(result[i] == value_of(static_cast<int>(i)));
    }
  }
}

TEST_CASE("P5 eight workers that return 100 MiB at once do not block each other") {
  const Watchdog watchdog;
  const Shared<std::atomic<int>> ready;
  const auto result = map_ints(Way::chunks,
                               [&](int i) {
                                 std::vector<char> value = pattern(100 * MiB, i);
                                 ++*ready;
                                 wait_until([&] { return *ready >= 8; });
                                 return value;
                               },
                               8, {.workers = 8});
  REQUIRE(result.ok());
  for (std::size_t i = 0; i < 8; ++i) CHECK(result[i] == pattern(100 * MiB, static_cast<int>(i)));
}

TEST_CASE("P5 gigabytes stream back through little memory") {
  const Watchdog watchdog;
  static constexpr int count = 200;
  const std::vector<char>& bytes = digested();
  const std::size_t before = resident_memory();
  std::size_t most = 0;
  int right = 0;
  const auto result = map_ints(Way::one_by_one,
                               [&](int) {
                                 return Digest{&bytes, false, {}};
                               },
                               count, {.workers = 4, .on_result = [&](const ItemResult<Digest>& item) {
                                         most = std::max(most, resident_memory());
                                         right += item.ok() && item.value().right;
                                       }});
  CHECK(result.ok());
  CHECK(right == count);
  if (support::may_fork_while_threads_run) CHECK(most < before + 128 * MiB);  // a sanitizer keeps freed memory
}

TEST_CASE("P5 items of 100 MiB are sent to workers") {
  const Watchdog watchdog;
  const auto item = [](int i) { return pattern(100 * MiB + static_cast<std::size_t>(i), i); };
  SinglePass source{4, item};
  const auto result = parallel_map(
      [&](const std::vector<char>& bytes, const Task& task) { return bytes == item(static_cast<int>(task.index)); },
      source, {.workers = 2, .executor = Executor::process, .batch = Batch{.size = 3}});
  REQUIRE(result.ok());
  for (std::size_t i = 0; i < 4; ++i) CHECK(result[i]);
}

TEST_CASE("P5 items and results of all sizes go both ways at once") {
  const Watchdog watchdog;
  const auto size_of = [](int i) { return static_cast<std::size_t>(i % 7 == 0 ? 700'000 + i : i * 37); };
  SinglePass source{200, [&](int i) { return pattern(size_of(i), i); }};
  const auto result = parallel_map([](const std::vector<char>& bytes) { return bytes; }, source,
                                   {.workers = 3, .executor = Executor::process});
  REQUIRE(result.ok());
  int wrong = 0;
  for (int i = 0; i < 200; ++i) wrong += result[static_cast<std::size_t>(i)] != pattern(size_of(i), i);
  CHECK(wrong == 0);
}

TEST_CASE("P5 a Codec of one's own is used also for trivially copyable results") {
  const Watchdog watchdog;
  STATIC_REQUIRE(std::is_trivially_copyable_v<Tripled>);
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const auto result = map_ints(
        way,
        [](int i) {
          return Tripled{i, getpid()};
        },
        10);
    REQUIRE(result.ok());
    CHECK(result[7].number == 21);
    CHECK(result[7].made_in == getpid());
  }
}

TEST_CASE("P5 a Codec that throws fails its item only") {
  const Watchdog watchdog;
  const auto counted = parallel_map(
      [](const Picky& item) { return item.number; },
      std::views::iota(0, 50) | std::views::filter([](int i) { return i % 5 != 3; }) | std::views::transform([](int i) {
        return Picky{i, {}};
      }),
      {.workers = 2, .executor = Executor::process});
  REQUIRE(counted.complete());
  REQUIRE(counted.size() == 40);
  for (std::size_t i = 0; i < 40; ++i)
    CHECK(fate(counted, i) == (i % 4 == 3 ? "std::range_error: not decoded" : "value"));
  for (const Way way : ways) {
    const auto result = map_ints(
        way,
        [](int i) {
          return Picky{i, {}};
        },
        50);
    CHECK(result.complete());
    for (std::size_t i = 0; i < 50; ++i) {
      CAPTURE(static_cast<int>(way), i);
      CHECK(fate(result, i) == (i % 5 == 3   ? "std::length_error: not encoded"
                                : i % 5 == 4 ? "std::range_error: not decoded"
                                             : "value"));
    }
  }
}

// P6: a parent with other threads -----------------------------------------------------------------------------

TEST_CASE("P6 runs fork while threads of the program hold locks and allocate") {
  if (!support::may_fork_while_threads_run) return;
  const Watchdog watchdog;
  std::atomic<bool> done{false};
  std::mutex lock;
  const auto hammer = [&](unsigned seed) {
    std::vector<std::unique_ptr<char[]>> blocks(64);
    for (unsigned i = seed; !done; ++i) {
      const std::lock_guard guard{lock};
      blocks[i % 64] = std::make_unique<char[]>((i * 2654435761U) % 100'000 + 1);
    }
  };
  {
    std::vector<std::unique_ptr<Meanwhile>> threads;
    for (unsigned thread = 0; thread < 4; ++thread) {
      threads.push_back(std::make_unique<Meanwhile>([&, thread] { hammer(thread * 1000); }));
    }
    for (int round = 0; round < 100; ++round) {
      const auto result = map_ints(ways[static_cast<std::size_t>(round) % ways.size()],
                                   [](int i) {
                                     if (i == 3) _exit(1);
                                     return std::vector<std::string>(100, std::to_string(i));
                                   },
                                   10, {.timeout = 1min});
      CHECK(result.failures().size() == 1);
      CHECK(fate(result, 3) == "exit code 1");
    }
    done = true;
    for (const auto& thread : threads) thread->join();
  }
}

TEST_CASE("P6 a thread that holds the lock of the standard output does not hold up the call") {
  if (!support::may_fork_while_threads_run) return;
  const auto child = in_child([](const Parent& parent) {
    std::atomic<bool> held{false};
    std::atomic<bool> done{false};
    Meanwhile holder{[&] {
      flockfile(stdout);
      held = true;
      wait_until([&] { return done.load(); });
      funlockfile(stdout);
    }};
    wait_until([&] { return held.load(); });
    const auto result = map_ints(
        Way::chunks, [](int i) { return i; }, 10);
    done = true;
    holder.join();
    parent.tell(result.ok() ? "ok" : "failed");
  });
  CHECK(child.end() == "exited with 0");
  CHECK(child.told == "ok");
}

TEST_CASE("P6 pooled threads in use do not disturb workers that use threads too") {
  if (!support::may_fork_while_threads_run) return;
  const Watchdog watchdog;
  const auto sum = [](int n) {
    const auto squares = parallel_map([](int i) { return i * i; }, std::views::iota(0, n), {.workers = 4});
    return std::accumulate(squares.begin(), squares.end(), 0);
  };
  std::atomic<bool> done{false};
  Meanwhile busy{[&] {
    while (!done) sum(100);
  }};
  for (int round = 0; round < 30; ++round) {
    const auto result = map_ints(Way::chunks, sum, 12);
    CHECK(result.ok());
    CHECK(result[11] == 385);
  }
  done = true;
  busy.join();
}

// P7: workers that cannot be forked -----------------------------------------------------------------------------

namespace {

/// In a child: becomes a user who may have `more` processes more than there are. False if that cannot be had here.
bool limit_processes(rlim_t more) {
  if (getuid() == 0) {
    constexpr uid_t nobody = 65534;
    // The limit counts all processes of a user: so one whom no test beside this one is.
    const uid_t nobody_else = 1'000'000'000 + static_cast<uid_t>(getpid());
    if (setgroups(0, nullptr) != 0 || setgid(nobody) != 0) return false;
    if (setuid(nobody_else) != 0 && setuid(nobody) != 0) return false;
  }
  rlimit limit{};
  if (getrlimit(RLIMIT_NPROC, &limit) != 0) return false;
  const auto may_fork_under = [&](rlim_t processes) {
    limit.rlim_cur = processes;
    if (setrlimit(RLIMIT_NPROC, &limit) != 0) return true;
    const pid_t pid = fork();
    if (pid == 0) _exit(0);
    if (pid > 0) waitpid(pid, nullptr, 0);
    return pid > 0;
  };
  if (may_fork_under(0)) return false;  // no such limit here
  rlim_t one_more = 1;
  while (!may_fork_under(one_more)) ++one_more;
  limit.rlim_cur = one_more - 1 + more;
  return setrlimit(RLIMIT_NPROC, &limit) == 0;
}

}  // namespace

TEST_CASE("P7 where no worker can be forked the call throws std::system_error") {
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const auto child = in_child([&](const Parent& parent) {
      if (!limit_processes(0)) return parent.tell("no such limit");
      const Shared<std::atomic<int>> ran;
      try {
        map_ints(
            way, [&](int) { ++*ran; }, 20);
        parent.tell("returned");
      } catch (const std::system_error& e) {
        parent.tell(e.code() == std::errc::resource_unavailable_try_again && *ran == 0 ? "refused" : e.what());
      }
    });
    CHECK(child.end() == "exited with 0");
    if (child.told != "no such limit") CHECK(child.told == "refused");
  }
}

TEST_CASE("P7 where only some workers can be forked the run goes on with those") {
  for (const Way way : ways) {
    CAPTURE(static_cast<int>(way));
    const auto child = in_child([&](const Parent& parent) {
      if (!limit_processes(2)) return parent.tell("no such limit");
      const Runs runs(60);
      const auto result = map_ints(way,
                                   [&](int i) {
                                     runs.add(i);
                                     std::this_thread::sleep_for(2ms);  // long enough for all eight to be wanted
                                     if (i == 30) _exit(1);
                                     return getpid();
                                   },
                                   60, {.workers = 8});
      std::set<pid_t> workers;
      for (const auto& success : result.successes()) workers.insert(success.value);
      if (result.failures().size() != 1 || fate(result, 30) != "exit code 1" || !runs.each_once()) {
        parent.tell("wrong result; ");
      }
      // Two, and the one that replaced the one that died.
      parent.tell(workers.size() <= 3 ? "few" : std::to_string(workers.size()) + " workers");
    });
    CHECK(child.end() == "exited with 0");
    if (child.told != "no such limit") CHECK(child.told == "few");
  }
}

// C8: calls in calls, and side by side --------------------------------------------------------------------------

namespace {

/// Sum of 0 .. fanout^kinds.size() - 1 by maps in maps, one level for each letter: t(hreads), p(rocesses),
/// P(rocesses that pull their items), s(equential).
long nested_sum(const std::string& kinds, int fanout, long first = 0) {
  if (kinds.empty()) return first;
  long below = 1;
  for (std::size_t i = 1; i < kinds.size(); ++i) below *= fanout;
  const auto sum_of = [&](int i) { return nested_sum(kinds.substr(1), fanout, first + i * below); };
  const auto items = std::views::iota(0, fanout);
  const MapOptions<int, long> options{.workers = 2,
                                      .executor = runtime(kinds[0] == 't'   ? Executor::thread
                                                          : kinds[0] == 's' ? Executor::sequential
                                                                            : Executor::process)};
  const auto result = kinds[0] == 'P' ? parallel_map(sum_of, std::list<int>(items.begin(), items.end()), options)
                                      : parallel_map(sum_of, items, options);
  return std::accumulate(result.begin(), result.end(), 0L);
}

long sum_below(long n) { return n * (n - 1) / 2; }

}  // namespace

TEST_CASE("C8 processes and threads nest in every mix") {
  const Watchdog watchdog;
  std::vector<std::string> mixes{"p", "P", "pp", "Pp", "pP", "ppp", "PpP", "sp", "ps", "psp"};
  if (support::children_may_start_threads) {
    for (const char* mix : {"pt", "Pt", "ptt", "ppt", "pst"}) mixes.emplace_back(mix);
  }
  if (support::may_fork_while_threads_run) {
    for (const char* mix : {"tp", "tP", "tpt", "ptp", "ttp", "tpp", "ptpt", "tptp", "stpP"}) mixes.emplace_back(mix);
  }
  for (const std::string& mix : mixes) {
    CAPTURE(mix);
    long all = 1;
    for (std::size_t i = 0; i < mix.size(); ++i) all *= 3;
    CHECK(nested_sum(mix, 3) == sum_below(all));
  }
}

TEST_CASE("C8 crashes inside nested calls stay where they are") {
  const Watchdog watchdog;
  const auto crash_in_the_third = [](int i) {
    if (i == 2) die_by(SIGSEGV);
    return i;
  };
  const auto inner = [&](int i) {
    const auto result = map_ints(Way::chunks, crash_in_the_third, 5);
    if (result.failures().size() != 1 || fate(result, 2) != "signal 11") throw std::runtime_error("wrong inner");
    if (i == 1) _exit(4);
    return i;
  };
  const auto middle = [&](int i) {
    const auto result = map_ints(i % 2 == 0 ? Way::pulled : Way::one_by_one, inner, 4);
    if (result.failures().size() != 1 || fate(result, 1) != "exit code 4") throw std::runtime_error("wrong middle");
    if (i == 3) std::abort();
    return i;
  };
  const auto result = map_ints(Way::chunks, middle, 6);
  CHECK(result.failures().size() == 1);
  CHECK(fate(result, 3) == "signal " + std::to_string(SIGABRT));
  if (support::may_fork_while_threads_run) {
    const auto threads = parallel_map(inner, std::vector<int>{0, 2, 3, 4}, {.workers = 3});
    CHECK(threads.ok());
  }
}

TEST_CASE("C8 calls on processes run at the same time from two threads") {
  if (!support::may_fork_while_threads_run) return;
  const Watchdog watchdog;
  const auto call = [](int seed) {
    for (int round = 0; round < 15; ++round) {
      const Runs runs(50);
      const auto result = map_ints(
          ways[static_cast<std::size_t>(round + seed) % ways.size()],
          [&](int i) {
            runs.add(i);
            if (i % 10 == seed) _exit(i);
            return std::vector<int>(1000, i);
          },
          50);
      if (result.failures().size() != 5 || !runs.each_once()) throw std::runtime_error("wrong result");
      for (const Failure& failure : result.failures()) {
        if (fate(failure.error) != "exit code " + std::to_string(failure.index))
          throw std::runtime_error("wrong error");
      }
    }
  };
  Meanwhile other{[&] { call(1); }};
  CHECK_NOTHROW(call(2));
  CHECK_NOTHROW(other.join());
}

TEST_CASE("C8 callbacks and sources of a call on processes may call too") {
  const Watchdog watchdog;
  const auto inner = [] {
    if (nested_sum("pP", 3) != sum_below(9)) throw std::runtime_error("wrong sum");
  };
  SinglePass source{6, [](int i) { return i; }};
  source.on_read = [&](int) { inner(); };
  int reports = 0;
  const auto result = parallel_map([](int i) { return i; }, source,
                                   {.workers = 2,
                                    .executor = Executor::process,
                                    .item_key =
                                        [&](int i) {
                                          inner();
                                          return ItemKey{i};
                                        },
                                    .on_result =
                                        [&](const ItemResult<int>&) {
                                          inner();
                                          ++reports;
                                        },
                                    .worker_init = [&] { inner(); }});
  CHECK(result.ok());
  CHECK(reports == 6);
}
