// Streams on forked workers: what they yield, what they hold at once, how they end, and what becomes of the workers
// when the consumer leaves, stands still, changes threads or dies.
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <system_error>

#include "support/process_state.hpp"
#include "support/processes.hpp"

using namespace pyarallel;
using namespace support;
using namespace std::chrono_literals;

namespace {

/// The same for the numbers 0 ... count - 1 as every kind of input: code(make), where make() gives one of them.
template <class Code>
void for_each_source(int count, Code code) {
  SECTION("inherited") {
    code([=] { return numbers(count); });
  }
  SECTION("sent from a list") {
    code([=] {
      const Ints all = numbers(count);
      return std::list<int>(all.begin(), all.end());
    });
  }
  SECTION("sent from a generator") {
    code([=] { return SinglePass{count, itself}; });
  }
}

template <class R>
using Items = std::vector<ItemResult<R>>;

/// What there is to come.
template <class R>
Items<R> rest_of(ResultStream<R>& stream) {
  Items<R> items;
  for (auto& item : stream) items.push_back(std::move(item));
  return items;
}

template <class R>
Ints indices_of(const Items<R>& items) {
  Ints all;
  for (const auto& item : items) all.push_back(static_cast<int>(item.index));
  return all;
}

template <class R>
bool in_order(const Items<R>& items) {
  return std::ranges::is_sorted(items, std::less{}, &ItemResult<R>::index);
}

/// Each of the items 0 ... count - 1 was yielded, and once.
template <class R>
bool each_once(const Items<R>& items, int count) {
  Ints all = indices_of(items);
  std::ranges::sort(all);
  return all == numbers(count);
}

/// Those in between may never have run.
template <class R>
bool no_item_twice(const Items<R>& items) {
  const Ints all = indices_of(items);
  return std::set<int>(all.begin(), all.end()).size() == all.size();
}

template <class R>
const ItemResult<R>& item_at(const Items<R>& items, int index) {
  const auto found = std::ranges::find(items, static_cast<std::size_t>(index), &ItemResult<R>::index);
  if (found == items.end()) throw std::logic_error("item " + std::to_string(index) + " was not yielded");
  return *found;
}

template <class R>
int count_failures(const Items<R>& items) {
  return static_cast<int>(std::ranges::count_if(items, [](const auto& item) { return !item.ok(); }));
}

template <class E, class R>
int count_errors(const Items<R>& items) {
  return static_cast<int>(
      std::ranges::count_if(items, [](const auto& item) { return !item.ok() && item.error().template is<E>(); }));
}

bool has_children() {
  siginfo_t info{};
  return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 || errno != ECHILD;
}

/// All that a stream could leave behind in this process, to be compared with what is there after it.
std::string leavings() {
  std::string text = has_children() ? "children; " : "";
  DIR* const folder = opendir("/proc/self/fd");
  if (folder == nullptr) throw std::runtime_error("/proc/self/fd");
  while (const dirent* entry = readdir(folder)) {
    if (std::atoi(entry->d_name) != dirfd(folder)) text.append(entry->d_name).append(" ");
  }
  closedir(folder);
  std::ifstream maps("/proc/self/maps");
  int shared_mappings = 0;
  for (std::string line; std::getline(maps, line);) shared_mappings += line.find(" rw-s ") != std::string::npos;
  return text + "; " + std::to_string(shared_mappings) + " shared mappings";
}

std::set<std::string> names_of_shared_memory() {
  std::set<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm", error)) names.insert(entry.path().string());
  return names;
}

/// Checks that nothing of a stream is left when it goes.
class NothingLeft {
 public:
  NothingLeft() {
    // What the library makes once in a process, and keeps, is there.
    parallel_map(itself, numbers(2), {.workers = 2, .executor = Executor::process});
    parallel_map(itself, std::list<int>{1, 2}, {.workers = 2, .executor = Executor::process});
    before_ = leavings();
    names_ = names_of_shared_memory();
  }
  NothingLeft(const NothingLeft&) = delete;
  NothingLeft& operator=(const NothingLeft&) = delete;
  ~NothingLeft() {
    CHECK(leavings() == before_);
    // Other programs have names too, which come and go.
    CHECK_NOTHROW(wait_until([&] { return std::ranges::includes(names_, names_of_shared_memory()); }));
  }

 private:
  std::string before_;
  std::set<std::string> names_;
};

/// Who hangs, and how many.
struct Hanging {
  std::atomic<int> count{0};
  std::array<std::atomic<pid_t>, 16> pids{};

  [[noreturn]] void hang_here() {
    pids.at(static_cast<std::size_t>(count++)) = getpid();
    hang();
  }
  void wait_for(int number) const {
    wait_until([&] { return std::ranges::count_if(pids, [](const auto& pid) { return pid != 0; }) >= number; });
  }
  bool all_gone() const {
    return std::ranges::all_of(pids, [](const auto& pid) { return pid == 0 || is_gone(pid); });
  }
};

constexpr std::size_t MiB = std::size_t{1} << 20;

/// Text whose every byte depends on the item.
std::string text_of_size(int item, std::size_t size) {
  return std::string(size, static_cast<char>('a' + item % 26)) + std::to_string(item);
}

}  // namespace

// S1: what is yielded ------------------------------------------------------------------------------------

TEST_CASE("S1 a forked stream yields each result once with its receipt") {
  const Test test;
  for_each_source(100, [](auto make) {
    for (const bool ordered : {false, true}) {
      auto items = make();
      const auto fn = [](int item) { return in_worker() ? std::to_string(item) : "not in a worker"; };
      auto stream = parallel_iter(fn, items, {.workers = 2, .executor = Executor::process, .ordered = ordered});
      const auto yielded = rest_of(stream);
      CHECK(stream.status() == RunStatus::completed);
      CHECK((stream.begin() == stream.end()));
      REQUIRE(each_once(yielded, 100));
      if (ordered) CHECK(in_order(yielded));
      for (const auto& item : yielded) {
        REQUIRE(item.ok());
        CHECK(item.value() == std::to_string(item.index));
        CHECK(item.attempts == 1);
        CHECK(item.duration > Duration::zero());
        CHECK((item.key == ItemKey{}));
      }
      if constexpr (requires { items.mistakes; }) {
        CHECK(items.mistakes == 0);
        CHECK(items.begun == 1);
        CHECK(items.reads == 100);
      }
    }
  });
}

TEST_CASE("S1 a forked stream yields in the order of completion") {
  const Test test;
  for_each_source(20, [](auto make) {
    const Shared<Gate> gate;
    const auto fn = [&](int item) {
      if (item == 0) gate->wait();
      return item;
    };
    auto items = make();
    auto stream = parallel_iter(fn, items, {.workers = 2, .executor = Executor::process});
    Ints yielded;
    for (const auto& item : stream) {
      yielded.push_back(item.value());
      if (yielded.size() == 19) gate->open();  // until then, it comes after all others
    }
    REQUIRE(yielded.size() == 20);
    CHECK(yielded.back() == 0);
  });
}

TEST_CASE("S1 a forked stream that is ordered waits for the next in the input") {
  const Test test;
  for_each_source(20, [](auto make) {
    const Shared<Tally> calls;
    const auto fn = [&](int item) {
      ++(*calls)[item];
      if (item % 4 == 0) wait_until([&] { return item == 16 || (*calls)[item + 3] == 1; });
      return item;
    };
    auto items = make();
    auto stream = parallel_iter(
        fn, items, {.workers = 2, .executor = Executor::process, .batch = Batch{.size = 4}, .ordered = true});
    CHECK(indices_of(rest_of(stream)) == numbers(20));
  });
}

TEST_CASE("S1 a forked stream does nothing before it is begun and begins once") {
  const Test test;
  const Forks forks;
  SinglePass source{10, itself};
  {
    auto never_begun = parallel_iter(itself, source, {.workers = 2, .executor = Executor::process});
    CHECK(never_begun.status() == RunStatus::completed);
  }
  auto stream = parallel_iter(itself, source, {.workers = 2, .executor = Executor::process});
  CHECK(source.begun == 0);
  CHECK(source.reads == 0);
  CHECK(forks.count() == 0);
  auto first = stream.begin();
  CHECK(forks.count() >= 1);
  REQUIRE((first != stream.end()));
  const auto* const current = &*first;
  CHECK(&*stream.begin() == current);
  CHECK(rest_of(stream).size() == 10);
  CHECK(forks.count() <= 2);
}

TEST_CASE("C2 a forked stream of nothing is complete and forks nobody whatever the options") {
  const Test test;
  const Forks forks;
  std::stop_source stopped;
  stopped.request_stop();
  const auto check = [&](auto&& items) {
    auto stream = parallel_iter(
        itself, items,
        {.workers = 2, .executor = Executor::process, .timeout = 0s, .max_errors = 1, .stop = stopped.get_token()});
    CHECK((stream.begin() == stream.end()));
    CHECK(stream.status() == RunStatus::completed);
  };
  check(Ints{});
  check(std::list<int>{});
  check(SinglePass{0, itself});
  CHECK(forks.count() == 0);
}

TEST_CASE("C1 a forked stream runs every kind of function") {
  const Test test;
  const auto nothing = [](int item) {
    if (item == 2) throw std::out_of_range("two");
  };
  auto of_nothing = parallel_iter(nothing, numbers(4), {.workers = 2, .executor = Executor::process});
  const auto units = rest_of(of_nothing);
  CHECK(each_once(units, 4));
  CHECK(count_failures(units) == 1);

  auto owned = std::make_unique<int>(1000);
  auto moved_in = parallel_iter([owned = std::move(owned)](int item) { return *owned + item; }, std::list<int>{1, 2, 3},
                                {.workers = 2, .executor = Executor::process, .ordered = true});
  Ints values;
  for (const auto& item : moved_in) values.push_back(item.value());
  CHECK(values == Ints{1001, 1002, 1003});

  const auto about_task = [](int item, const Task& task) {
    return std::tuple{static_cast<int>(task.index) == item, task.attempt, task.worker < 3};
  };
  auto tasks = parallel_iter(about_task, numbers(20), {.workers = 3, .executor = Executor::process});
  for (const auto& item : tasks) CHECK(item.value() == std::tuple{true, 1, true});
}

TEST_CASE("S1 a forked stream is a view that other views adapt") {
  const Test test;
  const NothingLeft nothing_left;
  auto values = parallel_iter([](int item) { return item * 10; }, std::views::iota(0),
                              {.workers = 2, .executor = Executor::process, .ordered = true}) |
                std::views::filter([](const auto& item) { return item.index % 2 == 1; }) |
                std::views::transform([](const auto& item) { return item.value(); }) | std::views::take(3);
  Ints seen;
  for (const int value : values) seen.push_back(value);
  CHECK(seen == Ints{10, 30, 50});
}

TEST_CASE("S3 a forked stream that is moved goes on and assigning to one ends it") {
  const Test test;
  const NothingLeft nothing_left;
  const Shared<Hanging> hanging;
  const std::function<int(int)> quick = [](int item) { return item; };
  const std::function<int(int)> slow = [&](int item) -> int {
    if (item == 0) return 0;
    hanging->hang_here();
  };
  const Ints items = numbers(20);
  auto stream = parallel_iter(quick, items, {.workers = 2, .executor = Executor::process, .ordered = true});
  auto it = stream.begin();
  auto other = std::move(stream);
  CHECK(it->index == 0);
  ++it;
  CHECK(it->index == 1);
  CHECK((stream.begin() == stream.end()));

  auto ended = parallel_iter(slow, items, {.workers = 2, .executor = Executor::process, .ordered = true});
  CHECK(ended.begin()->index == 0);
  hanging->wait_for(2);
  ended = std::move(other);
  CHECK(hanging->all_gone());
  const auto rest = rest_of(ended);
  REQUIRE(rest.size() == 19);
  CHECK(rest.front().index == 1);
  CHECK(rest.back().index == 19);
}

// S2: what is held at once -------------------------------------------------------------------------------

TEST_CASE("S2 a forked stream holds at most a window of items and results whatever its consumer does") {
  const Test test;
  const auto check = [](std::optional<Batch> batch, int window) {
    for_each_source(40, [&](auto make) {
      for (const bool ordered : {false, true}) {
        const Shared<std::atomic<int>> begun;
        const auto fn = [&](int item) {
          ++*begun;
          return item;
        };
        auto items = make();
        int left_behind = 0;
        int most_read = 0;
        if constexpr (requires { items.on_read; }) {
          items.on_read = [&](int item) { most_read = std::max(most_read, item + 1 - left_behind); };
        }
        auto stream =
            parallel_iter(fn, items, {.workers = 2, .executor = Executor::process, .batch = batch, .ordered = ordered});
        int worst = 0;
        for (auto it = stream.begin(); it != stream.end(); ++it) {
          if (left_behind == 0) {
            // It stands still: now they would run on, if anything did.
            CHECK_NOTHROW(wait_until([&] { return *begun >= window; }));
            for (int i = 0; i < 20; ++i) dawdle();
          }
          worst = std::max(worst, *begun - left_behind);
          ++left_behind;
        }
        CHECK(left_behind == 40);
        CHECK(*begun == 40);
        CHECK(worst == window);
        if constexpr (requires { items.on_read; }) CHECK(most_read == window);
      }
    });
  };
  SECTION("the default") { check({}, 4); }
  SECTION("one") { check(Batch{.size = 1}, 1); }
  SECTION("three") { check(Batch{.size = 3}, 3); }
  SECTION("sixteen") { check(Batch{.size = 16, .chunk = 4}, 16); }
}

namespace {

/// A result that is counted in the process that has it.
struct Weighed {
  explicit Weighed(int n) : number(n) { ++alive; }
  Weighed(Weighed&& other) noexcept : number(other.number) { ++alive; }
  Weighed& operator=(Weighed&&) = delete;
  ~Weighed() { --alive; }

  int number;
  static inline int alive = 0;
};

}  // namespace

template <>
struct pyarallel::Codec<Weighed> {
  static void encode(const Weighed& value, Bytes& out) { Codec<int>::encode(value.number, out); }
  static Weighed decode(std::span<const std::byte>& in) { return Weighed{Codec<int>::decode(in)}; }
};

TEST_CASE("S2 a forked stream destroys every result and keeps no more than a window") {
  const Test test;
  REQUIRE(Weighed::alive == 0);
  for_each_source(60, [](auto make) {
    for (const bool ordered : {false, true}) {
      for (const int leave_after : {1, 7, 1000}) {
        {
          auto items = make();
          const auto fn = [](int item) { return item % 7 == 3 ? throw Boom("no result") : Weighed{item}; };
          auto stream = parallel_iter(
              fn, items, {.workers = 2, .executor = Executor::process, .batch = Batch{.size = 5}, .ordered = ordered});
          int seen = 0;
          int most = 0;
          for (const auto& item : stream) {
            most = std::max(most, Weighed::alive);
            CHECK(item.ok() == (item.index % 7 != 3));
            if (++seen == leave_after) break;
          }
          CHECK(most <= 5);
          CHECK(seen == std::min(leave_after, 60));
        }
        CHECK(Weighed::alive == 0);
      }
    }
  });
}

TEST_CASE("S2 P5 large results go through a forked stream in little memory") {
  const Test test;
  for_each_source(150, [](auto make) {
    for (const bool ordered : {false, true}) {
      auto items = make();
      const auto fn = [](int item) { return text_of_size(item, MiB); };
      auto stream = parallel_iter(
          fn, items, {.workers = 2, .executor = Executor::process, .batch = Batch{.size = 6}, .ordered = ordered});
      int seen = 0;
      bool right = true;
      std::size_t before = 0;
      std::size_t most = 0;
      for (const auto& item : stream) {
        right = right && item.value() == text_of_size(static_cast<int>(item.index), MiB);
        if (++seen == 30) before = resident_memory();
        if (seen > 30) most = std::max(most, resident_memory());
      }
      CHECK(seen == 150);
      CHECK(right);
      if (may_fork_while_threads_run) CHECK(most < before + 24 * MiB);  // what was freed a sanitizer keeps
    }
  });
}

TEST_CASE("S2 P5 large results wait for the consumer of a forked stream and are not late") {
  const Test test;
  for_each_source(12, [](auto make) {
    const Shared<std::atomic<int>> made;
    const auto fn = [&](int item) {
      std::string text = text_of_size(item, 8 * MiB);
      ++*made;
      return text;
    };
    auto items = make();
    auto stream = parallel_iter(
        fn, items,
        {.workers = 3, .executor = Executor::process, .batch = Batch{.size = 6}, .task_timeout = 1s, .max_errors = 1});
    auto it = stream.begin();
    // Nobody takes the other results, and so two of their workers are in the middle of sending them.
    wait_until([&] { return *made >= 3; });
    std::this_thread::sleep_for(1050ms);
    int seen = 0;
    bool right = true;
    for (; it != stream.end(); ++it, ++seen) {
      right = right && it->ok() && it->value() == text_of_size(static_cast<int>(it->index), 8 * MiB);
    }
    CHECK(seen == 12);
    CHECK(right);
    CHECK(stream.status() == RunStatus::completed);
  });
}

TEST_CASE("C3 large items go through a forked stream") {
  const Test test;
  SinglePass source{12, [](int item) { return text_of_size(item, 2 * MiB); }};
  auto stream = parallel_iter([](const std::string& text) { return text; }, source,
                              {.workers = 2, .executor = Executor::process});
  int seen = 0;
  for (const auto& item : stream) {
    ++seen;
    CHECK((item.value() == text_of_size(static_cast<int>(item.index), 2 * MiB)));
  }
  CHECK(seen == 12);
}

// P2: crashes --------------------------------------------------------------------------------------------

TEST_CASE("P2 the crash of an item of a forked stream costs that item only") {
  const Test test;
  for_each_source(30, [](auto make) {
    for (const bool ordered : {false, true}) {
      const Shared<Tally> calls;
      const auto fn = [&](int item) {
        ++(*calls)[item];
        if (item == 0) crash();
        if (item == 11) _exit(7);
        if (item == 29) die_by(SIGABRT);
        return item;
      };
      auto items = make();
      auto stream = parallel_iter(fn, items, {.workers = 2, .executor = Executor::process, .ordered = ordered});
      const auto yielded = rest_of(stream);
      REQUIRE(each_once(yielded, 30));
      if (ordered) CHECK(in_order(yielded));
      CHECK(count_failures(yielded) == 3);
      CHECK(calls->first(30) == Ints(30, 1));
      const auto ending = [&](int index) {
        const auto* crashed = item_at(yielded, index).error().template get_if<WorkerCrashed>();
        return crashed == nullptr ? std::pair{-1, -1} : std::pair{crashed->signal(), crashed->exit_code()};
      };
      CHECK(ending(0) == std::pair{SIGKILL, -1});
      CHECK(ending(11) == std::pair{0, 7});
      CHECK(ending(29) == std::pair{SIGABRT, -1});
      CHECK(item_at(yielded, 0).attempts == 1);
      CHECK(stream.status() == RunStatus::completed);
    }
  });
}

TEST_CASE("P2 all items of a forked stream may crash") {
  const Test test;
  for_each_source(40, [](auto make) {
    const auto fn = [](int) -> int { crash(); };
    auto items = make();
    auto stream = parallel_iter(fn, items, {.workers = 3, .executor = Executor::process, .ordered = true});
    const auto yielded = rest_of(stream);
    CHECK(indices_of(yielded) == numbers(40));
    CHECK(count_errors<WorkerCrashed>(yielded) == 40);
  });
}

TEST_CASE("T5 a crash in a forked stream is retried and attempts are counted across it") {
  const Test test;
  for_each_source(20, [](auto make) {
    for (const bool ordered : {false, true}) {
      const Shared<Tally> calls;
      const auto fn = [&](int item, const Task& task) {
        ++(*calls)[item];
        if ((item == 0 || item == 13) && task.attempt < 3) crash();
        if (item == 7) crash();
        if (item == 9) throw Boom("not of this type");
        return item * 10 + task.attempt;
      };
      auto items = make();
      auto stream = parallel_iter(fn, items,
                                  {.workers = 2,
                                   .executor = Executor::process,
                                   .retry = Retry{.attempts = 4, .backoff = 1ms, .on = retry_on<WorkerCrashed>},
                                   .ordered = ordered});
      const auto yielded = rest_of(stream);
      REQUIRE(each_once(yielded, 20));
      if (ordered) CHECK(in_order(yielded));
      for (const auto& item : yielded) {
        const int expected = item.index == 0 || item.index == 13 ? 3 : item.index == 7 ? 4 : 1;
        CHECK(item.attempts == expected);
        CHECK((*calls)[item.index] == expected);
        CHECK(item.ok() == (item.index != 7 && item.index != 9));
        if (item.ok()) CHECK(item.value() == static_cast<int>(item.index) * 10 + expected);
      }
      CHECK(count_errors<WorkerCrashed>(yielded) == 1);
    }
  });
}

TEST_CASE("P2 a crash while the consumer of a forked stream is busy elsewhere is noticed when it goes on") {
  const Test test;
  for_each_source(30, [](auto make) {
    for (const bool ordered : {false, true}) {
      struct Board {
        Tally calls;
        Gate consumer_has_one;
        std::atomic<pid_t> crashes{0};
      };
      const Shared<Board> board;
      const auto fn = [&](int item) {
        ++board->calls[item];
        if (item != 1) return item;
        board->consumer_has_one.wait();
        board->crashes = getpid();
        crash();
      };
      auto items = make();
      auto stream = parallel_iter(fn, items, {.workers = 2, .executor = Executor::process, .ordered = ordered});
      Items<int> yielded;
      for (auto& item : stream) {
        if (yielded.empty()) {
          board->consumer_has_one.open();
          CHECK_NOTHROW(wait_until([&] { return board->crashes != 0 && is_gone(board->crashes); }));
        }
        yielded.push_back(std::move(item));
      }
      REQUIRE(each_once(yielded, 30));
      CHECK(item_at(yielded, 1).error().template is<WorkerCrashed>());
      CHECK(count_failures(yielded) == 1);
      CHECK(board->calls.first(30) == Ints(30, 1));
    }
  });
}

TEST_CASE("P2 idle workers of a forked stream that somebody kills cost nothing") {
  const Test test;
  for_each_source(30, [](auto make) {
    struct Board {
      Tally calls;
      std::array<std::atomic<pid_t>, 4> pids{};
    };
    const Shared<Board> board;
    const auto fn = [&](int item) {
      if (item < 4) board->pids[static_cast<std::size_t>(item)] = getpid();
      ++board->calls[item];
      return item;
    };
    auto items = make();
    auto stream = parallel_iter(fn, items, {.workers = 2, .executor = Executor::process, .batch = Batch{.size = 4}});
    Items<int> yielded;
    for (auto& item : stream) {
      if (yielded.empty()) {
        wait_until([&] { return board->calls.total() == 4; });
        for (const auto& pid : board->pids) {
          // It sleeps when it has told of its items.
          wait_until([&] { return state_of_process(pid) == 'S' || is_gone(pid); });
          kill(pid, SIGKILL);
          wait_until([&] { return is_gone(pid); });
        }
      }
      yielded.push_back(std::move(item));
    }
    REQUIRE(each_once(yielded, 30));
    CHECK(count_failures(yielded) == 0);
    CHECK(board->calls.first(30) == Ints(30, 1));
  });
}

TEST_CASE("P2 forked streams whose workers die at any moment lose and double nothing") {
  const Test test;
  std::mt19937 random{20261123};
  const auto below = [&](int limit) { return static_cast<int>(random() % static_cast<unsigned>(limit)); };
  for (int round = 0; round < 12; ++round) {
    const int count = 20 + below(60);
    Ints fates(static_cast<std::size_t>(count));
    for (int& fate : fates) fate = below(20);
    const Shared<Tally> calls;
    const auto fn = [&](int item) {
      ++(*calls)[item];
      switch (fates[static_cast<std::size_t>(item)]) {
        case 0:
        case 1:
          crash();
        case 2:
          _exit(3);
        case 3:
          throw std::out_of_range(std::to_string(item));
        case 4:
          if (item % 10 == 0) hang();
          return std::string{};
        case 5:
          return text_of_size(item, MiB);
        default:
          return text_of_size(item, 10);
      }
    };
    const auto run = [&](auto&& items) {
      const bool ordered = below(2) == 0;
      const bool retries = below(2) == 0;
      StreamOptions<int, std::string> options{.workers = static_cast<std::size_t>(1 + below(4)),
                                              .executor = Executor::process,
                                              .batch = Batch{.size = static_cast<std::size_t>(below(12))},
                                              .ordered = ordered,
                                              .task_timeout = 1s};
      if (retries) options.retry = Retry{.attempts = 2, .backoff = 0s, .on = retry_on<WorkerCrashed>};
      if (below(2) == 0) options.max_tasks_per_worker = static_cast<std::size_t>(1 + below(5));
      auto stream = parallel_iter(fn, items, options);
      const auto yielded = rest_of(stream);
      REQUIRE(each_once(yielded, count));
      if (ordered) CHECK(in_order(yielded));
      for (const auto& item : yielded) {
        const int number = static_cast<int>(item.index);
        const int fate = fates[item.index];
        const bool crashes = fate <= 2;
        const bool hangs = fate == 4 && number % 10 == 0;
        CHECK(item.attempts == (crashes && retries ? 2 : 1));
        CHECK((*calls)[item.index] == item.attempts);
        REQUIRE(item.ok() == (!crashes && fate != 3 && !hangs));
        if (crashes) CHECK(item.error().template is<WorkerCrashed>());
        if (fate == 3) CHECK(item.error().template is<std::out_of_range>());
        if (hangs) CHECK(item.error().template is<TaskTimeout>());
        if (fate == 5) CHECK((item.value() == text_of_size(number, MiB)));
        if (fate > 5) CHECK(item.value() == text_of_size(number, 10));
      }
    };
    if (round % 2 == 0) {
      run(numbers(count));
    } else {
      run(SinglePass{count, itself});
    }
  }
}

TEST_CASE("P2 max_tasks_per_worker replaces the workers of a forked stream") {
  const Test test;
  for_each_source(30, [](auto make) {
    for (const std::size_t most : {1U, 4U}) {
      auto items = make();
      auto stream = parallel_iter([](int) { return getpid(); }, items,
                                  {.workers = 2, .executor = Executor::process, .max_tasks_per_worker = most});
      std::map<pid_t, std::size_t> runs;
      for (const auto& item : stream) ++runs[item.value()];
      CHECK(runs.size() >= 30 / most);
      for (const auto& [pid, count] : runs) CHECK(count <= most);
    }
  });
}

TEST_CASE("P3 the types of exceptions survive a forked stream") {
  const Test test;
  for_each_source(6, [](auto make) {
    const auto fn = [](int item) -> int {
      if (item == 0) throw std::out_of_range("range");
      if (item == 1) throw std::system_error(ENOENT, std::generic_category(), "file");
      if (item == 2) throw Boom("of the test");
      if (item == 3) throw 42;
      if (item == 4) throw HttpError(503, "7", "busy");
      return item;
    };
    auto items = make();
    auto stream = parallel_iter(fn, items, {.workers = 2, .executor = Executor::process});
    const auto yielded = rest_of(stream);
    REQUIRE(each_once(yielded, 6));
    const auto error = [&](int index) { return item_at(yielded, index).error(); };
    CHECK(error(0).template is<std::out_of_range>());
    CHECK(error(0).what() == "range");
    REQUIRE(error(1).template get_if<std::system_error>() != nullptr);
    CHECK((error(1).template get_if<std::system_error>()->code() == std::errc::no_such_file_or_directory));
    const Error remote = error(2);
    REQUIRE(remote.get_if<RemoteError>() != nullptr);
    CHECK(says(remote.get_if<RemoteError>()->type_name(), "Boom"));
    CHECK(remote.what() == "of the test");
    const Error number = error(3);
    REQUIRE(number.get_if<RemoteError>() != nullptr);
    CHECK(number.get_if<RemoteError>()->type_name() == "int");
    const Error http = error(4);
    REQUIRE(http.get_if<HttpError>() != nullptr);
    CHECK(http.get_if<HttpError>()->status() == 503);
    CHECK(item_at(yielded, 5).value() == 5);
    CHECK_THROWS_AS(item_at(yielded, 0).value(), std::out_of_range);
  });
}

// E: ending early ------------------------------------------------------------------------------------------

TEST_CASE("E4 an attempt in a forked stream that takes too long is killed and nobody else is harmed") {
  const Test test;
  for_each_source(30, [](auto make) {
    for (const bool retried : {false, true}) {
      const Shared<Tally> calls;
      const auto fn = [&](int item) {
        ++(*calls)[item];
        if (item % 10 == 4) hang();
        return item;
      };
      StreamOptions<int, int> options{.workers = 2, .executor = Executor::process, .task_timeout = 150ms};
      if (retried) options.retry = Retry{.attempts = 2, .backoff = 0s, .on = retry_on<TaskTimeout>};
      auto items = make();
      auto stream = parallel_iter(fn, items, options);
      const auto yielded = rest_of(stream);
      REQUIRE(each_once(yielded, 30));
      CHECK(count_failures(yielded) == 3);
      for (const auto& item : yielded) {
        const bool hangs = item.index % 10 == 4;
        CHECK(item.attempts == (hangs && retried ? 2 : 1));
        CHECK((*calls)[item.index] == item.attempts);
        CHECK(item.ok() == !hangs);
        if (hangs) CHECK(item.error().template is<TaskTimeout>());
        if (hangs) CHECK(item.duration >= 150ms);
      }
      CHECK(stream.status() == RunStatus::completed);
    }
  });
}

TEST_CASE("E4 an attempt in a forked stream that hangs while the consumer is away is killed when it comes back") {
  const Test test;
  for_each_source(10, [](auto make) {
    const Shared<Hanging> hanging;
    const auto fn = [&](int item) {
      if (item == 1) hanging->hang_here();
      return item;
    };
    auto items = make();
    auto stream =
        parallel_iter(fn, items, {.workers = 2, .executor = Executor::process, .ordered = true, .task_timeout = 200ms});
    auto it = stream.begin();
    CHECK(it->index == 0);
    hanging->wait_for(1);
    std::this_thread::sleep_for(250ms);
    ++it;
    REQUIRE((it != stream.end()));
    CHECK(it->index == 1);
    CHECK(it->error().template is<TaskTimeout>());
    CHECK(hanging->all_gone());
    CHECK(rest_of(stream).size() == 9);  // the current one included
  });
}

TEST_CASE("E2 a timeout ends a forked stream whose items hang and what was resolved is yielded") {
  const Test test;
  const NothingLeft nothing_left;
  for_each_source(40, [](auto make) {
    for (const bool ordered : {false, true}) {
      const Shared<Hanging> hanging;
      const auto fn = [&](int item) {
        if (item >= 20) hanging->hang_here();
        return item;
      };
      auto items = make();
      auto stream =
          parallel_iter(fn, items, {.workers = 3, .executor = Executor::process, .ordered = ordered, .timeout = 500ms});
      const auto begin = SteadyClock::now();
      const auto yielded = rest_of(stream);
      const auto took = SteadyClock::now() - begin;
      CHECK(took >= 500ms);
      CHECK(took < 10s);
      CHECK(stream.status() == RunStatus::timed_out);
      CHECK(each_once(yielded, 20));
      CHECK(count_failures(yielded) == 0);
      CHECK(hanging->count == 3);
      CHECK(hanging->all_gone());
      CHECK((stream.begin() == stream.end()));
      CHECK_FALSE(has_children());
    }
  });
}

TEST_CASE("E2 the time of a forked stream begins when it is begun") {
  const Test test;
  auto stream = parallel_iter(itself, numbers(10), {.workers = 2, .executor = Executor::process, .timeout = 1s});
  std::this_thread::sleep_for(1100ms);
  CHECK(rest_of(stream).size() == 10);
  CHECK(stream.status() == RunStatus::completed);
}

TEST_CASE("E2 a forked stream yields what was resolved when its deadline passes while the consumer is away") {
  const Test test;
  for_each_source(40, [](auto make) {
    for (const bool ordered : {false, true}) {
      const Shared<std::atomic<int>> calls;
      const auto fn = [&](int item) {
        ++*calls;
        return item;
      };
      auto items = make();
      auto stream = parallel_iter(fn, items,
                                  {.workers = 2,
                                   .executor = Executor::process,
                                   .batch = Batch{.size = 6},
                                   .ordered = ordered,
                                   .timeout = 500ms});
      auto it = stream.begin();
      REQUIRE((it != stream.end()));
      wait_until([&] { return *calls == 6; });
      std::this_thread::sleep_for(520ms);
      int seen = 0;
      for (; it != stream.end(); ++it) seen += it->ok();
      CHECK(seen == 6);
      CHECK(*calls == 6);
      CHECK(stream.status() == RunStatus::timed_out);
    }
  });
}

TEST_CASE("E2 E3 a forked stream without time or with a stopped token runs nothing") {
  const Test test;
  for_each_source(10, [](auto make) {
    const Shared<std::atomic<int>> calls;
    const auto fn = [&](int item) {
      ++*calls;
      return item;
    };
    std::stop_source stopped;
    stopped.request_stop();
    for (const bool by_timeout : {false, true}) {
      StreamOptions<int, int> options{.workers = 2, .executor = Executor::process};
      if (by_timeout) options.timeout = 0s;
      if (!by_timeout) options.stop = stopped.get_token();
      options.worker_init = [&] { ++*calls; };
      options.on_progress = [&](auto...) { ++*calls; };
      auto items = make();
      auto stream = parallel_iter(fn, items, options);
      CHECK((stream.begin() == stream.end()));
      CHECK(stream.status() == (by_timeout ? RunStatus::timed_out : RunStatus::cancelled));
      if constexpr (requires { items.reads; }) CHECK(items.reads == 0);
    }
    CHECK(*calls == 0);
  });
}

TEST_CASE("E3 a stop by the consumer ends a forked stream whose items hang") {
  const Test test;
  const NothingLeft nothing_left;
  for_each_source(40, [](auto make) {
    for (const bool ordered : {false, true}) {
      const Shared<Hanging> hanging;
      const auto fn = [&](int item) {
        if (item >= 5) hanging->hang_here();
        return item;
      };
      std::stop_source stop;
      auto items = make();
      auto stream = parallel_iter(fn, items,
                                  {.workers = 3,
                                   .executor = Executor::process,
                                   .batch = Batch{.size = 8},
                                   .ordered = ordered,
                                   .stop = stop.get_token()});
      Items<int> yielded;
      for (auto& item : stream) {
        if (yielded.empty()) {
          hanging->wait_for(3);  // so that the others are resolved
          stop.request_stop();
        }
        yielded.push_back(std::move(item));
      }
      CHECK(each_once(yielded, 5));
      CHECK(stream.status() == RunStatus::cancelled);
      CHECK(hanging->all_gone());
      CHECK_FALSE(has_children());
    }
  });
}

TEST_CASE("E3 a stop from another thread ends a forked stream whose consumer waits for items that hang") {
  if (!may_fork_while_threads_run) return;
  const Test test;
  for_each_source(40, [](auto make) {
    const Shared<Hanging> hanging;
    const auto fn = [&](int item) {
      if (item >= 5) hanging->hang_here();
      return item;
    };
    std::stop_source stop;
    Meanwhile stopper{[&] {
      hanging->wait_for(2);
      stop.request_stop();
    }};
    auto items = make();
    auto stream = parallel_iter(fn, items, {.workers = 2, .executor = Executor::process, .stop = stop.get_token()});
    const auto yielded = rest_of(stream);
    stopper.join();
    CHECK(each_once(yielded, 5));
    CHECK(stream.status() == RunStatus::cancelled);
    CHECK(hanging->all_gone());
  });
}

TEST_CASE("R5 a timeout or a stop that leaves no item of a forked stream unrun changes nothing") {
  const Test test;
  for_each_source(4, [](auto make) {
    std::stop_source stop;
    const Shared<std::atomic<int>> calls;
    const auto fn = [&](int item) {
      ++*calls;
      return item;
    };
    auto items = make();
    auto stream = parallel_iter(
        fn, items, {.workers = 2, .executor = Executor::process, .batch = Batch{.size = 8}, .stop = stop.get_token()});
    Items<int> yielded;
    for (auto& item : stream) {
      if (yielded.empty()) {
        wait_until([&] { return *calls == 4; });
        for (int i = 0; i < 100; ++i) dawdle();  // until they are told of
      }
      yielded.push_back(std::move(item));
      if (yielded.size() == 4) stop.request_stop();
    }
    CHECK(each_once(yielded, 4));
    CHECK(stream.status() == RunStatus::completed);
  });
}

TEST_CASE("E1 a forked stream ends with the last failure that max_errors allows") {
  const Test test;
  for_each_source(1000, [](auto make) {
    for (const bool by_crash : {false, true}) {
      const auto fn = [&](int item) {
        if (item % 4 == 2) {
          if (by_crash) crash();
          throw Boom(std::to_string(item));
        }
        return item;
      };
      {
        auto items = make();
        auto stream = parallel_iter(fn, items, {.workers = 2, .executor = Executor::process, .max_errors = 5});
        const auto yielded = rest_of(stream);
        CHECK(stream.status() == RunStatus::aborted);
        CHECK(count_failures(yielded) == 5);
        CHECK_FALSE(yielded.back().ok());
        CHECK(yielded.size() < 100);
        CHECK((stream.begin() == stream.end()));
      }
      {
        auto items = make();
        auto stream =
            parallel_iter(fn, items, {.workers = 2, .executor = Executor::process, .ordered = true, .max_errors = 5});
        const auto yielded = rest_of(stream);
        CHECK(stream.status() == RunStatus::aborted);
        CHECK(indices_of(yielded) == numbers(2 + 4 * 4 + 1));
        CHECK(count_failures(yielded) == 5);
      }
    }
  });
}

TEST_CASE("E1 R5 the n-th failure of a forked stream aborts it also on the last item and fewer do not") {
  const Test test;
  for_each_source(10, [](auto make) {
    for (const bool ordered : {false, true}) {
      const auto fn = [](int item) { return item >= 7 ? throw Boom("one of three") : item; };
      const auto status = [&](std::size_t max_errors) {
        auto items = make();
        auto stream = parallel_iter(
            fn, items, {.workers = 2, .executor = Executor::process, .ordered = ordered, .max_errors = max_errors});
        const auto yielded = rest_of(stream);
        // In completion order a value may come too late, behind the last failure.
        if (ordered || max_errors == 4) CHECK(yielded.size() == 10);
        CHECK(count_failures(yielded) == 3);
        return stream.status();
      };
      CHECK(status(3) == RunStatus::aborted);
      CHECK(status(4) == RunStatus::completed);
    }
  });
}

TEST_CASE("W3 a forked stream of an endless input ends with max_errors or a timeout or a stop") {
  const Test test;
  const auto fn = [](int item) { return item % 100 == 99 ? throw Boom("hundredth") : item; };
  const auto endless = std::views::iota(0);
  auto aborted = parallel_iter(fn, endless, {.workers = 2, .executor = Executor::process, .max_errors = 3});
  CHECK(count_failures(rest_of(aborted)) == 3);
  CHECK(aborted.status() == RunStatus::aborted);
  auto timed_out = parallel_iter(fn, endless, {.workers = 2, .executor = Executor::process, .timeout = 200ms});
  CHECK_FALSE(rest_of(timed_out).empty());
  CHECK(timed_out.status() == RunStatus::timed_out);
  std::stop_source stop;
  auto cancelled = parallel_iter(fn, endless, {.workers = 2, .executor = Executor::process, .stop = stop.get_token()});
  for (const auto& item : cancelled) {
    if (item.index == 500) stop.request_stop();
  }
  CHECK(cancelled.status() == RunStatus::cancelled);
}

// S3 and C7: leaving early ------------------------------------------------------------------------------------

TEST_CASE("S3 C7 leaving a forked stream early kills items that hang and leaves nothing") {
  const Test test;
  for_each_source(40, [](auto make) {
    for (const int leave_after : {1, 3}) {
      for (const bool ordered : {false, true}) {
        const Shared<Hanging> hanging;
        const NothingLeft nothing_left;
        const auto fn = [&](int item) {
          if (item >= 4) hanging->hang_here();
          return item;
        };
        const auto begin = SteadyClock::now();
        {
          auto items = make();
          auto stream = parallel_iter(
              fn, items, {.workers = 3, .executor = Executor::process, .batch = Batch{.size = 10}, .ordered = ordered});
          int seen = 0;
          for (const auto& item : stream) {
            CHECK(item.ok());
            if (++seen == leave_after) break;
          }
          hanging->wait_for(3);
        }
        CHECK(SteadyClock::now() - begin < 10s);
        CHECK(hanging->count == 3);
        CHECK(hanging->all_gone());
      }
    }
  });
}

TEST_CASE("S3 C7 a forked stream that is begun and never advanced leaves nothing") {
  const Test test;
  for_each_source(40, [](auto make) {
    for (const std::size_t size : {std::size_t{10}, MiB, 16 * MiB}) {
      const Shared<std::atomic<int>> made;
      const NothingLeft nothing_left;
      const auto fn = [&](int item) {
        std::string text = text_of_size(item, size);
        ++*made;
        return text;
      };
      {
        auto items = make();
        auto stream = parallel_iter(fn, items, {.workers = 3, .executor = Executor::process});
        CHECK((stream.begin() != stream.end()));
        wait_until([&] { return *made >= 3; });  // results wait, or are being sent
      }
      CHECK(*made <= 6);
    }
  });
}

TEST_CASE("S3 C7 leaving a forked stream with a stopped worker leaves nothing") {
  const Test test;
  for_each_source(40, [](auto make) {
    const Shared<std::atomic<pid_t>> stopped;
    const NothingLeft nothing_left;
    const auto fn = [&](int item) {
      if (item == 1) {
        *stopped = getpid();
        raise(SIGSTOP);
      }
      return item;
    };
    {
      auto items = make();
      auto stream = parallel_iter(fn, items, {.workers = 2, .executor = Executor::process});
      CHECK((stream.begin() != stream.end()));
      wait_until([&] { return *stopped != 0 && state_of_process(*stopped) == 'T'; });
    }
    CHECK(is_gone(*stopped));
  });
}

TEST_CASE("S3 C7 leaving a forked stream kills hanging items also after its last failure or an exception") {
  const Test test;
  enum class End { max_errors, max_errors_ordered, source, progress, key };
  for (const End end : {End::max_errors, End::max_errors_ordered, End::source, End::progress, End::key}) {
    CAPTURE(static_cast<int>(end));
    const auto child = in_child([&](const Parent& parent) {
      alarm(10);
      const Shared<Hanging> hanging;
      const Shared<std::atomic<int>> begun;
      const auto both_run = [&] { wait_until([&] { return *begun >= 2; }); };
      const auto fn = [&](int item) -> int {
        ++*begun;
        if (item > 0) hanging->hang_here();
        hanging->wait_for(1);
        if (end == End::max_errors || end == End::max_errors_ordered) throw Boom("the only one");
        return item;
      };
      SinglePass source{10, itself};
      source.on_read = [&](int item) {
        if (end != End::source || item != 3) return;
        both_run();
        throw Boom("of the source");
      };
      StreamOptions<int, int> options{.workers = 2, .executor = Executor::process};
      options.ordered = end == End::max_errors_ordered;
      if (end == End::max_errors || end == End::max_errors_ordered) options.max_errors = 1;
      if (end == End::progress) options.on_progress = [](auto...) { throw Boom("of a callback"); };
      if (end == End::key) {
        options.item_key = [&](int item) {
          if (item != 3) return ItemKey{};
          both_run();
          throw Boom("of a key");
        };
      }
      {
        auto stream = parallel_iter(fn, source, options);
        parent.tell("item " + std::to_string(stream.begin()->index));
      }
      parent.tell(hanging->all_gone() && !has_children() ? ", all gone" : ", somebody is left");
    });
    CHECK(child.end() == "exited with 0");
    CHECK(child.told == "item 0, all gone");
  }
}

// S5, B and C6: sources, callbacks, options -----------------------------------------------------------------------

TEST_CASE("S5 W2 what the source of a forked stream throws leaves it after what was resolved") {
  const Test test;
  for (const int throws_at : {0, 1, 5, 20}) {
    for (const bool at_increment : {false, true}) {
      for (const bool ordered : {false, true}) {
        CAPTURE(throws_at, at_increment, ordered);
        const Shared<Tally> calls;
        const auto fn = [&](int item) {
          ++(*calls)[item];
          return item;
        };
        SinglePass source{100, itself};
        const auto fail = [&](int item) {
          if (item == throws_at) throw Boom("of the source");
        };
        (at_increment ? source.on_increment : source.on_read) = fail;
        auto stream = parallel_iter(fn, source, {.workers = 2, .executor = Executor::process, .ordered = ordered});
        Items<int> yielded;
        bool thrown = false;
        try {
          for (auto& item : stream) yielded.push_back(std::move(item));
        } catch (const Boom& e) {
          thrown = std::string_view{e.what()} == "of the source";
        }
        CHECK(thrown);
        CHECK_FALSE(has_children());
        CHECK((stream.begin() == stream.end()));
        const int read = throws_at + (at_increment ? 1 : 0);
        CHECK(no_item_twice(yielded));
        // Those that had not begun never will.
        CHECK(static_cast<int>(yielded.size()) <= read);
        CHECK(static_cast<int>(yielded.size()) >= read - 4);
        CHECK(calls->total() == static_cast<int>(yielded.size()));
        CHECK(source.mistakes == 0);
      }
    }
  }
}

TEST_CASE("S5 W2 running items of a forked stream are asked to stop and yielded before the exception leaves") {
  const Test test;
  struct Counts {
    std::atomic<int> running{0};
    std::atomic<int> ended{0};
  };
  const Shared<Counts> counts;
  const auto fn = [&](int item, const Task& task) {
    ++counts->running;
    wait_for_stop(task);
    ++counts->ended;
    return item;
  };
  SinglePass source{100, itself};
  source.on_read = [&](int item) {
    if (item != 2) return;
    wait_until([&] { return counts->running == 2; });
    throw Boom("of the source");
  };
  auto stream = parallel_iter(fn, source, {.workers = 2, .executor = Executor::process});
  Items<int> yielded;
  try {
    for (auto& item : stream) yielded.push_back(std::move(item));
    FAIL("nothing was thrown");
  } catch (const Boom&) {
  }
  CHECK(each_once(yielded, 2));
  CHECK(counts->ended == 2);
}

TEST_CASE("B2 B3 what a callback or a key function of a forked stream throws leaves it and no callback follows") {
  const Test test;
  for_each_source(60, [](auto make) {
    for (const bool key : {false, true}) {
      int calls = 0;
      const auto fail_at_ten = [&] {
        if (++calls == 10) throw Boom("the tenth");
      };
      StreamOptions<int, int> options{.workers = 2, .executor = Executor::process};
      if (key) {
        options.item_key = [&](int) {
          fail_at_ten();
          return ItemKey{};
        };
      } else {
        options.on_progress = [&](auto...) { fail_at_ten(); };
      }
      auto items = make();
      auto stream = parallel_iter(itself, items, options);
      Items<int> yielded;
      CHECK_THROWS_WITH(
          [&] {
            for (auto& item : stream) yielded.push_back(std::move(item));
          }(),
          "the tenth");
      CHECK(calls == 10);
      CHECK(no_item_twice(yielded));
      CHECK(yielded.size() >= (key ? 5 : 10));
      CHECK(yielded.size() <= (key ? 9 : 14));
      CHECK((stream.begin() == stream.end()));
      CHECK_FALSE(has_children());
    }
  });
}

TEST_CASE("B4 what worker_init throws leaves a forked stream") {
  const Test test;
  for_each_source(20, [](auto make) {
    const Shared<std::atomic<int>> calls;
    const auto fn = [&](int item) {
      ++*calls;
      return item;
    };
    auto items = make();
    auto stream = parallel_iter(fn, items, {.workers = 2, .executor = Executor::process, .worker_init = [] {
                                              throw std::out_of_range("not today");
                                            }});
    CHECK_THROWS_AS(stream.begin(), std::out_of_range);
    CHECK((stream.begin() == stream.end()));
    CHECK(*calls == 0);
    CHECK_FALSE(has_children());
  });
}

TEST_CASE("B4 worker_init runs once in each worker of a forked stream before its items") {
  const Test test;
  for_each_source(40, [](auto make) {
    const Forks forks;
    const Shared<std::atomic<int>> initialized;
    int number = 0;  // each worker has its own
    const auto fn = [&](int item) {
      if (item == 20) crash();
      return number;
    };
    auto items = make();
    auto stream = parallel_iter(fn, items, {.workers = 2, .executor = Executor::process, .worker_init = [&] {
                                              number = number == 0 ? ++*initialized : -1;
                                            }});
    const auto yielded = rest_of(stream);
    CHECK(each_once(yielded, 40));
    CHECK(count_failures(yielded) == 1);
    for (const auto& item : yielded) {
      if (item.ok()) CHECK(item.value() >= 1);
    }
    CHECK(*initialized <= forks.count());
    CHECK(number == 0);
  });
}

TEST_CASE("B3 a forked stream of inherited items has keys") {
  const Test test;
  struct NoCodec {
    std::unique_ptr<std::string> name;
  };
  std::vector<NoCodec> items;
  for (int i = 0; i < 50; ++i) items.push_back({std::make_unique<std::string>("name " + std::to_string(i))});
  for (const bool ordered : {false, true}) {
    const Shared<Tally> begun;
    std::vector<int> keyed(50);
    const auto fn = [&](const NoCodec& item) {
      const int number = std::stoi(item.name->substr(5));
      ++(*begun)[number];
      if (number == 30) crash();
      return number;
    };
    bool before_its_item = true;
    auto stream = parallel_iter(fn, items,
                                {.workers = 2,
                                 .executor = Executor::process,
                                 .ordered = ordered,
                                 .item_key =
                                     [&](const NoCodec& item) {
                                       const int number = std::stoi(item.name->substr(5));
                                       ++keyed[static_cast<std::size_t>(number)];
                                       before_its_item = before_its_item && !in_worker() && (*begun)[number] == 0;
                                       return ItemKey{*item.name};
                                     },
                                 .max_tasks_per_worker = 20});
    const auto yielded = rest_of(stream);
    REQUIRE(each_once(yielded, 50));
    for (const auto& item : yielded) CHECK((item.key == ItemKey{"name " + std::to_string(item.index)}));
    CHECK(item_at(yielded, 30).error().is<WorkerCrashed>());
    CHECK(keyed == Ints(50, 1));
    CHECK(before_its_item);
  }
}

TEST_CASE("B1 on_progress of a forked stream is called once for each item no later than it is yielded") {
  const Test test;
  for_each_source(50, [](auto make) {
    for (const bool ordered : {false, true}) {
      std::vector<std::size_t> done;
      bool in_consumer = true;
      bool right_total = true;
      auto items = make();
      constexpr bool sized = std::ranges::sized_range<decltype(items)>;
      const auto thread = std::this_thread::get_id();
      auto stream = parallel_iter([](int item) { return item % 9 == 8 ? (crash(), 0) : item; }, items,
                                  {.workers = 2,
                                   .executor = Executor::process,
                                   .ordered = ordered,
                                   .on_progress = [&](std::size_t number, std::size_t total) {
                                     done.push_back(number);
                                     in_consumer = in_consumer && !in_worker() && std::this_thread::get_id() == thread;
                                     right_total =
                                         right_total && (sized ? total == 50 : total >= number && total <= 50);
                                   }});
      std::size_t seen = 0;
      for (const auto& item : stream) {
        static_cast<void>(item);
        CHECK(done.size() >= ++seen);
      }
      CHECK(seen == 50);
      REQUIRE(done.size() == 50);
      for (std::size_t i = 0; i < done.size(); ++i) CHECK(done[i] == i + 1);
      CHECK(in_consumer);
      CHECK(right_total);
    }
  });
}

TEST_CASE("L1 L3 a forked stream keeps to its rate and retries draw from it too") {
  const Test test;
  for_each_source(10, [](auto make) {
    const Shared<Tally> calls;
    const auto fn = [&](int item, const Task& task) {
      ++(*calls)[item];
      if (item == 3 && task.attempt == 1) crash();
      if (item == 6 && task.attempt == 1) throw Boom("again");
      return item;
    };
    auto items = make();
    auto stream = parallel_iter(fn, items,
                                {.workers = 2,
                                 .executor = Executor::process,
                                 .rate_limit = RateLimit{50, 1s, 1},
                                 .retry = Retry{.attempts = 2, .backoff = 0s}});
    const auto begin = SteadyClock::now();
    const auto yielded = rest_of(stream);
    CHECK(each_once(yielded, 10));
    CHECK(count_failures(yielded) == 0);
    CHECK(calls->total() == 12);
    CHECK(SteadyClock::now() - begin >= 11 * 20ms - 1ms);
  });
}

TEST_CASE("C6 a forked stream refuses bad options and types without a Codec when it is made") {
  const Test test;
  const Forks forks;
  const auto complaint = [](const auto& fn, auto&& items, const auto&... options) -> std::string {
    try {
      parallel_iter(fn, items, options...);
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "none";
  };
  using ToInt = StreamOptions<int, int>;
  CHECK(complaint(itself, numbers(3), ToInt{.workers = 0, .executor = Executor::process}) ==
        "workers must be >= 1, got 0");
  CHECK(complaint(itself, numbers(3), ToInt{.executor = Executor::process, .max_errors = 0}) ==
        "max_errors must be >= 1, got 0");
  CHECK(complaint(itself, std::list<int>{}, ToInt{.executor = Executor::process, .max_tasks_per_worker = 0}) ==
        "max_tasks_per_worker must be >= 1, got 0");

  SinglePass source{3, itself};
  const auto pointer_to = [](const int& item) { return &item; };
  using ToPointer = StreamOptions<int, const int*>;
  const std::string no_codec = "executor: Executor::process needs a Codec for the type that the function returns";
  CHECK(complaint(pointer_to, source, ToPointer{.executor = runtime(Executor::process)}).starts_with(no_codec));
  CHECK(complaint(pointer_to, source, Options{.executor = Executor::process}).starts_with(no_codec));
  CHECK(complaint(pointer_to, Ints{}, Options{.executor = Executor::process}).starts_with(no_codec));
  CHECK(source.begun == 0);

  const Ints items{1, 2, 3};
  const std::list<const int*> pointers{&items[0], &items[1]};
  const auto pointee = [](const int* item) { return *item; };
  CHECK(complaint(pointee, pointers, Options{.executor = Executor::process})
            .starts_with("executor: Executor::process sends the items of an input that is not random access"));
  CHECK(forks.count() == 0);
}

// P4: workers and the threads of their program ------------------------------------------------------------------

namespace {

struct AcrossThreads {
  Gate gate;
  Tally calls;
  std::atomic<int> waiting{0};
};

}  // namespace

TEST_CASE("P4 the workers of a forked stream survive the end of the thread that began it") {
  const Test test;
  const NothingLeft nothing_left;
  const auto check = [](auto&& items) {
    for (const bool ordered : {false, true}) {
      const Forks forks;
      const Shared<AcrossThreads> board;
      const auto fn = [&](int item) {
        ++board->calls[item];
        if (item == 1 || item == 2) {
          ++board->waiting;
          board->gate.wait();  // runs while that thread ends
        }
        return std::pair{item, getpid()};
      };
      auto stream = parallel_iter(
          fn, items, {.workers = 3, .executor = Executor::process, .batch = Batch{.size = 6}, .ordered = ordered});
      Items<std::pair<int, pid_t>> yielded;
      std::jthread{[&] {
        yielded.push_back(std::move(*stream.begin()));
        wait_until([&] { return board->waiting == 2; });
      }}.join();
      for (int i = 0; i < 20; ++i) dawdle();
      board->gate.open();
      for (auto it = ++stream.begin(); it != stream.end(); ++it) yielded.push_back(std::move(*it));
      REQUIRE(each_once(yielded, 40));
      if (ordered) CHECK(in_order(yielded));
      CHECK(count_failures(yielded) == 0);
      CHECK(board->calls.first(40) == Ints(40, 1));
      CHECK(forks.count() == 3);
      CHECK(stream.status() == RunStatus::completed);
    }
  };
  SECTION("inherited") { check(numbers(40)); }
  SECTION("sent") {
    const Ints all = numbers(40);
    check(std::list<int>(all.begin(), all.end()));
  }
}

TEST_CASE("P4 each step of a forked stream may be taken by another thread and workers that die are replaced") {
  const Test test;
  const NothingLeft nothing_left;
  for (const bool ordered : {false, true}) {
    const Shared<Tally> calls;
    const auto fn = [&](int item) {
      ++(*calls)[item];
      if (item % 10 == 7) crash();
      return text_of_size(item, item % 5 == 0 ? MiB : 10);
    };
    auto stream =
        parallel_iter(fn, std::views::iota(0, 60), {.workers = 2, .executor = Executor::process, .ordered = ordered});
    Items<std::string> yielded;
    for (bool over = false; !over;) {
      std::jthread{[&] {
        // begin() gives the current item, which was moved from already.
        auto it = stream.begin();
        if (!yielded.empty()) ++it;
        over = it == stream.end();
        if (!over) yielded.push_back(std::move(*it));
      }}.join();
    }
    REQUIRE(each_once(yielded, 60));
    if (ordered) CHECK(in_order(yielded));
    CHECK(count_failures(yielded) == 6);
    CHECK(count_errors<WorkerCrashed>(yielded) == 6);
    for (const auto& item : yielded) {
      const int number = static_cast<int>(item.index);
      if (item.ok()) CHECK((item.value() == text_of_size(number, number % 5 == 0 ? MiB : 10)));
    }
    CHECK(calls->first(60) == Ints(60, 1));
  }
}

TEST_CASE("P4 an item of a forked stream that sleeps is not cut short by the end of the thread that began it") {
  const Test test;
  const Shared<std::atomic<int>> asleep;
  const auto fn = [&](int item) {
    if (item == 0) return true;
    ++*asleep;
    const auto begin = SteadyClock::now();
    std::this_thread::sleep_for(300ms);
    return SteadyClock::now() - begin >= 300ms;
  };
  auto stream = parallel_iter(fn, numbers(5), {.workers = 2, .executor = Executor::process, .ordered = true});
  std::jthread{[&] {
    stream.begin();
    wait_until([&] { return *asleep > 0; });
  }}.join();
  const auto yielded = rest_of(stream);
  CHECK(indices_of(yielded) == numbers(5));
  for (const auto& item : yielded) CHECK(item.value());
}

TEST_CASE("P4 leaving a forked stream on another thread than the one that began it kills its items") {
  const Test test;
  const NothingLeft nothing_left;
  const Shared<Hanging> hanging;
  const auto fn = [&](int item) {
    if (item > 0) hanging->hang_here();
    return item;
  };
  {
    auto stream = parallel_iter(fn, numbers(10), {.workers = 3, .executor = Executor::process});
    std::jthread{[&] { stream.begin(); }}.join();
    hanging->wait_for(3);
    CHECK_FALSE(hanging->all_gone());
  }
  CHECK(hanging->all_gone());
}

TEST_CASE("P4 a forked stream goes on after the end of the main thread that began it") {
  const Test test;
  // Only there a main thread can end without its program.
  const auto child = in_child([](const Parent& parent) {
    const Shared<AcrossThreads> board;
    const auto fn = [&](int item) {
      ++board->calls[item];
      if (item == 1) {
        ++board->waiting;
        board->gate.wait();
      }
      if (item == 20) crash();
      return item;
    };
    auto stream = parallel_iter(fn, numbers(40), {.workers = 2, .executor = Executor::process});
    stream.begin();
    wait_until([&] { return board->waiting == 1; });
    std::thread other{[&] {
      try {
        wait_until([] { return state_of_process(getpid()) == 'Z'; });
        board->gate.open();
        const auto yielded = rest_of(stream);
        parent.tell(std::to_string(yielded.size()) + " items, " + std::to_string(count_failures(yielded)) +
                    " failed, " + std::to_string(board->calls.total()) + " calls");
        _exit(0);
      } catch (...) {
        _exit(97);
      }
    }};
    syscall(SYS_exit, 0);  // of this thread alone
  });
  CHECK(child.end() == "exited with 0");
  CHECK(child.told == "40 items, 1 failed, 40 calls");
}

TEST_CASE("P4 the workers of a forked stream die with their program and however it dies") {
  const Test test;
  struct Death {
    const char* end;
    std::function<void()> die;
  };
  const std::vector<Death> deaths{{"killed by signal 9", [] { kill(getpid(), SIGKILL); }},
                                  {"killed by signal 15", [] { raise(SIGTERM); }},
                                  {"killed by signal 6", [] { die_by(SIGABRT); }},
                                  {"exited with 5", [] { _exit(5); }}};
  for (const Death& death : deaths) {
    for (const bool sent : {false, true}) {
      for (const bool thread_ended : {false, true}) {
        CAPTURE(death.end, sent, thread_ended);
        const Shared<Hanging> hanging;
        const Shared<std::atomic<pid_t>> quick;
        // It returns when all who inherited the pipe are gone: the parent and its workers.
        const auto child = in_child([&](const Parent&) {
          const auto fn = [&](int item) {
            if (item > 0) hanging->hang_here();
            *quick = getpid();
            return item;
          };
          const auto run = [&](const auto& items) {
            auto stream =
                parallel_iter(fn, items, {.workers = 3, .executor = Executor::process, .batch = Batch{.size = 3}});
            if (thread_ended) {
              std::jthread{[&] { stream.begin(); }}.join();
            } else {
              stream.begin();
            }
            // The third worker has nothing to do, or was never needed.
            hanging->wait_for(2);
            death.die();
          };
          if (sent) {
            run(std::list<int>{0, 1, 2, 3, 4});
          } else {
            run(numbers(5));
          }
        });
        CHECK(child.end() == death.end);
        CHECK_NOTHROW(wait_until([&] { return hanging->all_gone() && is_gone(*quick); }));
        CHECK(hanging->count == 2);
      }
    }
  }
}

TEST_CASE("P4 the workers of a forked stream die with their program while it waits in the stream") {
  const Test test;
  for (const bool thread_ended : {false, true}) {
    CAPTURE(thread_ended);
    const Shared<Hanging> hanging;
    const Shared<std::atomic<pid_t>> program;
    if (!may_fork_while_threads_run) return;
    Meanwhile killer{[&] {
      hanging->wait_for(3);
      kill(*program, SIGKILL);
    }};
    const auto child = in_child([&](const Parent&) {
      *program = getpid();
      const auto fn = [&](int item) {
        if (item > 0) hanging->hang_here();
        return item;
      };
      auto stream = parallel_iter(fn, numbers(10), {.workers = 3, .executor = Executor::process});
      if (thread_ended) std::jthread{[&] { stream.begin(); }}.join();
      rest_of(stream);
    });
    killer.join();
    CHECK(child.end() == "killed by signal 9");
    CHECK_NOTHROW(wait_until([&] { return hanging->all_gone(); }));
  }
}

TEST_CASE("P4 a forked stream leaves the signals of its program alone") {
  const Test test;
  const auto settings = [] {
    std::string text;
    for (int signal = 1; signal < NSIG; ++signal) {
      struct sigaction action {};
      if (sigaction(signal, nullptr, &action) != 0) continue;
      text += std::to_string(reinterpret_cast<std::uintptr_t>(action.sa_handler)) + " ";
    }
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    for (int signal = 1; signal < NSIG; ++signal) text += sigismember(&mask, signal) == 1 ? '1' : '0';
    return text;
  };
  const std::string before = settings();
  {
    auto stream = parallel_iter(itself, numbers(20), {.workers = 2, .executor = Executor::process});
    auto it = stream.begin();
    CHECK(settings() == before);
    ++it;
    CHECK(settings() == before);
  }
  CHECK(settings() == before);
}

// C8: streams beside and inside of others -------------------------------------------------------------------------

namespace {

/// A forked stream of 20 items, two of which crash. Throws if it is not as it should be.
void run_small_stream(int seed, bool ordered) {
  const auto fn = [=](int item) {
    if (item == 3 || item == 17) _exit(seed + 1);
    return std::vector<int>(1000, item + seed);
  };
  auto stream =
      parallel_iter(fn, std::views::iota(0, 20), {.workers = 2, .executor = Executor::process, .ordered = ordered});
  const auto yielded = rest_of(stream);
  if (!each_once(yielded, 20) || (ordered && !in_order(yielded))) throw std::runtime_error("wrong items");
  for (const auto& item : yielded) {
    const int number = static_cast<int>(item.index);
    if (item.ok() != (number != 3 && number != 17)) throw std::runtime_error("wrong outcome");
    if (item.ok() && item.value() != std::vector<int>(1000, number + seed)) throw std::runtime_error("wrong value");
    const auto* crashed = item.ok() ? nullptr : item.error().get_if<WorkerCrashed>();
    if (!item.ok() && (crashed == nullptr || crashed->exit_code() != seed + 1)) throw std::runtime_error("wrong error");
  }
}

}  // namespace

TEST_CASE("C8 two forked streams run at the same time on two threads") {
  if (!may_fork_while_threads_run) return;
  const Test test;
  const NothingLeft nothing_left;
  const auto run = [](int seed) {
    for (int round = 0; round < 10; ++round) run_small_stream(seed, round % 2 == 0);
  };
  Meanwhile other{[&] { run(1); }};
  CHECK_NOTHROW(run(2));
  CHECK_NOTHROW(other.join());
}

TEST_CASE("C8 forked streams are consumed side by side in one loop") {
  const Test test;
  const NothingLeft nothing_left;
  const auto fn = [](int item) { return item % 7 == 6 ? (crash(), 0) : item; };
  auto one = parallel_iter(fn, numbers(30), {.workers = 2, .executor = Executor::process, .ordered = true});
  auto two = parallel_iter(fn, std::views::iota(0), {.workers = 2, .executor = Executor::process, .ordered = true});
  auto other = two.begin();
  int seen = 0;
  for (const auto& item : one) {
    CHECK(item.index == other->index);
    CHECK(item.ok() == other->ok());
    ++other;
    ++seen;
  }
  CHECK(seen == 30);
}

TEST_CASE("C8 forked streams run inside of functions on threads and in forked workers") {
  const Test test;
  const NothingLeft nothing_left;
  const auto inner = [](int seed) {
    run_small_stream(seed, seed % 2 == 0);
    return seed;
  };
  CHECK(parallel_map(inner, numbers(4), {.workers = 2, .executor = Executor::process}).ok());
  auto in_stream = parallel_iter(inner, numbers(4), {.workers = 2, .executor = Executor::process});
  CHECK(count_failures(rest_of(in_stream)) == 0);
  if (may_fork_while_threads_run) {
    CHECK(parallel_map(inner, numbers(6), {.workers = 3}).ok());
    auto on_threads = parallel_iter(inner, numbers(6), {.workers = 3});
    CHECK(count_failures(rest_of(on_threads)) == 0);
  }
}

TEST_CASE("C8 maps on processes run inside of a forked stream and die with its workers") {
  const Test test;
  const NothingLeft nothing_left;
  const Shared<Hanging> hanging;
  const auto inner = [&](int item) {
    if (item == 0) return parallel_map(itself, numbers(5), {.workers = 2, .executor = Executor::process}).ok();
    parallel_map([&](int) { hanging->hang_here(); }, numbers(2), {.workers = 2, .executor = Executor::process});
    return false;
  };
  {
    auto stream = parallel_iter(inner, numbers(10), {.workers = 2, .executor = Executor::process});
    std::jthread{[&] { stream.begin(); }}.join();
    CHECK(stream.begin()->value());
    hanging->wait_for(4);
  }
  CHECK_NOTHROW(wait_until([&] { return hanging->all_gone(); }));
}
