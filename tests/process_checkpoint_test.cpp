// Checkpoints with worker processes, and with processes that die: at any instant, and when the disk is full.
#include <fcntl.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <pyarallel/checkpoint.hpp>
#include <random>

#include "support/folder.hpp"
#include "support/processes.hpp"

using namespace pyarallel;
using namespace support;
using namespace std::chrono_literals;
namespace fs = std::filesystem;

namespace {

/// The items that a file has results of, each checked.
std::set<std::int64_t> stored_in(const fs::path& path) {
  if (!fs::exists(path)) return {};
  detail::Database database{path, detail::Database::Access::read};
  detail::read_header(database);
  std::set<std::int64_t> ids;
  detail::Statement select = database.prepare(detail::select_row);
  while (select.step()) {
    const auto row = detail::read_row(select);
    if (!row) throw std::runtime_error("a row is not as it was written");
    auto bytes = row->result;
    if (Codec<int>::decode(bytes) != row->id * 3) throw std::runtime_error("a row has another result");
    ids.insert(row->id);
  }
  return ids;
}

/// One line for each event, in a file that any process may add to at any time.
class EventLog {
 public:
  explicit EventLog(const fs::path& path)
      : path_(path), file_(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) {}

  void add(std::size_t item) const {
    const std::string line = std::to_string(item) + "\n";
    if (write(file_.get(), line.data(), line.size()) < 0) _exit(97);
  }
  std::uintmax_t size() const { return fs::file_size(path_); }
  std::vector<std::int64_t> take() const {
    std::ifstream file(path_);
    std::vector<std::int64_t> all{std::istream_iterator<std::int64_t>(file), {}};
    fs::resize_file(path_, 0);
    return all;
  }

 private:
  fs::path path_;
  detail::Descriptor file_;
};

/// A job that is killed again and again, at whatever instant, and goes on each time.
void check_kills(int kills, const std::function<MapOptions<int, int>()>& options_of_job, std::size_t window) {
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  const EventLog begun(folder / "begun");
  const EventLog reported(folder / "reported");
  const Ints items = numbers(300);
  const auto job = [&] {
    auto options = options_of_job();
    options.checkpoint = sqlite_checkpoint(path);
    options.on_result = [&](const ItemResult<int>& item) {
      if (item.attempts > 0) reported.add(item.index);
    };
    const auto fn = [&](int item) {
      begun.add(static_cast<std::size_t>(item));
      if (item % 8 == 0) std::this_thread::sleep_for(100us);
      return item * 3;
    };
    const auto result = parallel_map(fn, items, options);
    for (const int item : items) {
      if (result.at(static_cast<std::size_t>(item)) != item * 3) _exit(2);
    }
    return result.ok();
  };

  std::mt19937 random{7};
  int finished = 0;
  for (int killed = 0; killed < kills;) {
    const std::set<std::int64_t> before = stored_in(path);
    // Some die early, while the file is made or opened; the others when they have come so far, and a moment later.
    const std::uintmax_t far_enough = random() % 4 == 0 ? 0 : random() % 400;
    const auto moment = std::chrono::microseconds{random() % 1000};
    std::array<int, 2> pipe_ends{};
    REQUIRE(pipe(pipe_ends.data()) == 0);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      close(pipe_ends[0]);
      try {
        _exit(job() ? 0 : 1);
      } catch (const std::exception& e) {
        std::fprintf(stderr, "the job threw: %s\n", e.what());
        _exit(3);
      }
    }
    close(pipe_ends[1]);
    siginfo_t ended{};
    while (begun.size() < far_enough && ended.si_pid == 0) {
      std::this_thread::yield();
      waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOHANG | WNOWAIT);
    }
    std::this_thread::sleep_for(moment);
    kill(child, SIGKILL);
    // Its workers have the other end too: until they are gone as well.
    char nothing = 0;
    while (read(pipe_ends[0], &nothing, 1) > 0) continue;
    close(pipe_ends[0]);
    int status = 0;
    waitpid(child, &status, 0);

    const std::set<std::int64_t> after = stored_in(path);
    std::size_t lost = 0;
    for (const std::int64_t item : begun.take()) {
      if (before.contains(item)) FAIL("item " << item << " ran again, though its result was stored");
      if (!after.contains(item)) ++lost;
    }
    for (const std::int64_t item : reported.take()) {
      if (!after.contains(item)) FAIL("item " << item << " was reported, and is not stored");
    }
    for (const std::int64_t item : before) {
      if (!after.contains(item)) FAIL("item " << item << " was stored, and is no more");
    }
    if (lost > window) FAIL(lost << " items were lost that had begun, and only " << window << " can be in flight");
    if (WIFSIGNALED(status)) {
      ++killed;
      continue;
    }
    REQUIRE(WEXITSTATUS(status) == 0);
    CHECK(after.size() == items.size());
    fs::remove(path);
    ++finished;
  }
  CHECK(finished > 0);
}

}  // namespace

TEST_CASE(
    "K1 a job that is killed at 200 random instants loses no reported result, and repeats only what was in flight") {
  const Watchdog watchdog;
  check_kills(
      200, [] { return MapOptions<int, int>{.workers = 3}; }, 6);
}

TEST_CASE("K1 the same with worker processes") {
  const Watchdog watchdog;
  check_kills(
      200, [] { return MapOptions<int, int>{.workers = 2, .executor = Executor::process}; }, 4);
}

TEST_CASE("K1 a job that is killed while it makes the file can be run again") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  std::mt19937 random{11};
  int without_file = 0;
  for (int round = 0; round < 100; ++round) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      parallel_map(itself, numbers(3), {.workers = 1, .checkpoint = sqlite_checkpoint(path)});
      while (true) pause();
    }
    // To make it takes a millisecond or a few.
    std::this_thread::sleep_for(std::chrono::microseconds{random() % 3000});
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    without_file += fs::exists(path) ? 0 : 1;
    const auto result = parallel_map(itself, numbers(3), {.workers = 1, .checkpoint = sqlite_checkpoint(path)});
    CHECK(list_of(result) == numbers(3));
    CHECK(folder.names() == std::set<std::string>{"run.ckpt"});
    fs::remove(path);
  }
  CHECK(without_file > 0);
}

TEST_CASE("K1 with processes a later run computes only what is missing, and starts no worker for the rest") {
  const Test test;
  for_each_kind_of_input(30, [](const auto& items) {
    const Folder folder;
    const Shared<Tally> calls;
    bool broken = true;
    const auto fn = [&](int item) {
      ++(*calls)[item];
      if (broken && item % 5 == 2) crash();
      if (broken && item % 5 == 3) throw Boom("not yet");
      return std::to_string(item);
    };
    const auto run = [&] {
      return parallel_map(
          fn, items,
          {.workers = 2, .executor = Executor::process, .checkpoint = sqlite_checkpoint(folder / "run.ckpt")});
    };
    CHECK(run().failures().size() == 12);
    CHECK(calls->total() == 30);
    broken = false;
    CHECK(run().ok());
    CHECK(calls->total() == 42);
    const Forks forks;
    const auto third = run();
    CHECK(third.ok());
    CHECK(third[29] == "29");
    CHECK(attempts_of(third) == Ints(30, 0));
    CHECK(forks.count() == 0);
    CHECK(folder.names() == std::set<std::string>{"run.ckpt"});
  });
}

TEST_CASE("K1 with processes values of every kind come back from the file") {
  const Test test;
  const Folder folder;
  for (int round = 0; round < 2; ++round) {
    const auto in_place =
        parallel_map([](int item) { return item * 0.5; }, numbers(5),
                     {.executor = Executor::process, .checkpoint = sqlite_checkpoint(folder / "doubles.ckpt")});
    CHECK(list_of(in_place) == std::vector<double>{0, 0.5, 1, 1.5, 2});
    const auto large =
        parallel_map([](int item) { return std::string(3'000'000, static_cast<char>('a' + item)); }, numbers(3),
                     {.workers = 2,
                      .executor = Executor::process,
                      .checkpoint = sqlite_checkpoint(folder / "large.ckpt"),
                      .item_key = [](const int& item) -> ItemKey { return item; }});
    CHECK(large[2] == std::string(3'000'000, 'c'));
    CHECK(attempts_of(large) == Ints(3, round == 0 ? 1 : 0));
  }
}

TEST_CASE("E2 with processes and a checkpoint the deadline still ends the run, and what was done is kept") {
  const Test test;
  const Folder folder;
  const auto fn = [](int item) {
    if (item == 1) hang();
    return item;
  };
  const auto result = parallel_map(fn, numbers(100),
                                   {.workers = 2,
                                    .executor = Executor::process,
                                    .timeout = 300ms,
                                    .checkpoint = sqlite_checkpoint(folder / "run.ckpt")});
  CHECK(result.timed_out());
  CHECK(checkpoint_info(folder / "run.ckpt").completed == result.successes().size());
}

TEST_CASE("K4 workers do not hold the lock") {
  const Test test;
  const Folder folder;
  const auto holds_lock = [&](int) {
    for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
      std::error_code gone;
      if (says(fs::read_symlink(entry.path(), gone).string(), "run.ckpt-lock")) return true;
    }
    return false;
  };
  CHECK(holds_lock(0) == false);
  const auto result =
      parallel_map(holds_lock, numbers(20),
                   {.workers = 2, .executor = Executor::process, .checkpoint = sqlite_checkpoint(folder / "run.ckpt")});
  CHECK(list_of(result) == std::vector<bool>(20, false));
}

TEST_CASE("K4 a run in another process is refused while the first goes on") {
  const Test test;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  const auto run = [&] {
    return parallel_map(itself, numbers(2), {.workers = 1, .checkpoint = sqlite_checkpoint(path)});
  };
  std::string told;
  const auto on_result = [&](const ItemResult<int>&) {
    const Child child = in_child([&](const Parent& parent) {
      try {
        run();
      } catch (const CheckpointError& e) {
        parent.tell(e.what());
      }
    });
    told = child.told;
  };
  CHECK(parallel_map(itself, numbers(1), {.workers = 1, .checkpoint = sqlite_checkpoint(path), .on_result = on_result})
            .ok());
  CHECK(says(told, "another run is using it (process " + std::to_string(getpid()) + ")"));
  CHECK(run().ok());
}

TEST_CASE("K1 when the disk is full the run ends with CheckpointError, and what was reported is safe") {
  const Test test;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  const auto text_of = [](int item) { return std::string(2000, static_cast<char>('a' + item % 26)); };
  const Child child = in_child([&](const Parent& parent) {
    // Writing beyond this fails as on a full disk.
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{300'000, 300'000};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(96);
    int reported = 0;
    try {
      parallel_map(text_of, numbers(1000),
                   {.workers = 1,
                    .checkpoint = sqlite_checkpoint(path),
                    .on_result = [&](const ItemResult<std::string>&) { ++reported; }});
    } catch (const CheckpointError& e) {
      parent.tell(std::to_string(reported) + " " + e.what());
    }
  });
  CHECK(child.end() == "exited with 0");
  CAPTURE(child.told);
  const std::size_t reported = std::stoul(child.told);
  CHECK(reported > 10);
  CHECK(reported < 1000);
  CHECK(says(child.told, path.string()));
  int hits = 0;
  const auto result = parallel_map(
      text_of, numbers(1000),
      {.workers = 1, .checkpoint = sqlite_checkpoint(path), .on_result = [&](const ItemResult<std::string>& item) {
         if (item.attempts == 0) ++hits;
       }});
  CHECK(result.ok());
  CHECK(hits >= static_cast<int>(reported));
  CHECK(hits < 1000);
}
