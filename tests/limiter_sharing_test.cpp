// One budget for several processes: forked ones, and those that know its name; some are killed.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
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
#include <cstring>
#include <exception>
#include <filesystem>
#include <iterator>
#include <memory>
#include <new>
#include <optional>
#include <pyarallel.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <typeinfo>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/child.hpp"
#include "support/shared.hpp"
#include "support/text.hpp"
#include "support/wait.hpp"
#include "support/watchdog.hpp"

using namespace std::chrono_literals;
using pyarallel::Duration;
using pyarallel::Limiter;
using pyarallel::RateLimit;
using pyarallel::detail::Bucket;
using pyarallel::detail::BucketState;
using pyarallel::detail::NamedBudget;
using pyarallel::detail::Reservation;
using pyarallel::detail::SharedMemory;
using pyarallel::detail::TimePoint;
using support::Child;
using support::in_child;
using support::Parent;
using support::Shared;
using support::wait_until;
using support::Watchdog;

namespace {

constexpr auto whenever = TimePoint::max();

/// So slow that no token falls due while a test runs.
RateLimit only(int burst) { return {1, 1h, burst}; }

/// What parent and children count together.
struct Board {
  std::atomic<int> arrived{0};
  std::atomic<bool> go{false};
  std::atomic<int> granted{0};

  /// Holds the children back until the parent opens, so that they all run at once.
  void arrive() {
    ++arrived;
    wait_until([this] { return go.load(); });
  }
};

/// Children that run beside the parent. Those that are left are killed.
class Children {
 public:
  Children() = default;
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;
  ~Children() {
    kill_all();
    wait();
  }

  template <class Code>
  void start(Code code) {
    const pid_t pid = fork();
    if (pid < 0) throw std::system_error(errno, std::generic_category(), "fork");
    if (pid == 0) {
      try {
        code();
      } catch (...) {
        _exit(98);
      }
      _exit(0);
    }
    running_.push_back(pid);
  }

  void kill(std::size_t which) { ::kill(running_.at(which), SIGKILL); }
  void kill_all() {
    for (const pid_t pid : running_) ::kill(pid, SIGKILL);
  }

  /// Waits for all of them; how many ended neither with 0 nor by SIGKILL.
  int wait() {
    int failed = 0;
    for (const pid_t pid : std::exchange(running_, {})) {
      int status = 0;
      while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
      }
      const bool well = WIFEXITED(status) ? WEXITSTATUS(status) == 0 : WTERMSIG(status) == SIGKILL;
      failed += well ? 0 : 1;
    }
    return failed;
  }

 private:
  std::vector<pid_t> running_;
};

/// A name for a limiter that no other test and no other run uses; removed at the end.
class Name {
 public:
  Name() {
    static int count = 0;
    name_ = "test-" + std::to_string(getpid()) + "-" + std::to_string(++count);
  }
  Name(const Name&) = delete;
  Name& operator=(const Name&) = delete;
  ~Name() { Limiter::remove(name_); }

  operator std::string_view() const { return name_; }
  const std::string& text() const { return name_; }
  std::string path() const { return "/pyarallel." + std::to_string(geteuid()) + "." + name_; }

 private:
  std::string name_;
};

/// The shared memory behind a name, as somebody else sees it.
class Object {
 public:
  explicit Object(const Name& name, int flags = 0) : file_(shm_open(name.path().c_str(), O_RDWR | flags, 0600)) {
    if (file_ < 0) throw std::system_error(errno, std::generic_category(), "shm_open");
  }
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  ~Object() { close(file_); }

  struct stat about() const {
    struct stat about {};
    if (fstat(file_, &about) != 0) throw std::system_error(errno, std::generic_category(), "fstat");
    return about;
  }
  std::string content() const {
    std::string content(static_cast<std::size_t>(about().st_size), '\0');
    if (pread(file_, content.data(), content.size(), 0) < 0) {
      throw std::system_error(errno, std::generic_category(), "pread");
    }
    return content;
  }
  void write(std::string_view content) const {
    if (pwrite(file_, content.data(), content.size(), 0) != static_cast<ssize_t>(content.size())) {
      throw std::system_error(errno, std::generic_category(), "pwrite");
    }
  }
  void resize(std::size_t size) const {
    if (ftruncate(file_, static_cast<off_t>(size)) != 0) {
      throw std::system_error(errno, std::generic_category(), "ftruncate");
    }
  }
  void permit(mode_t mode) const {
    if (fchmod(file_, mode) != 0) throw std::system_error(errno, std::generic_category(), "fchmod");
  }

 private:
  int file_;
};

int drain(Limiter limiter, int most = 1'000'000) {
  int granted = 0;
  while (granted < most && limiter.try_acquire()) ++granted;
  return granted;
}

/// What the exception of this very type says that code() throws; empty if it throws none.
template <class E, class Code>
std::string complaint(Code code) {
  try {
    code();
  } catch (const E& e) {
    return typeid(e) == typeid(E) ? e.what() : "";
  }
  return {};
}

using support::says;

std::ptrdiff_t open_descriptors() {
  return std::distance(std::filesystem::directory_iterator{"/proc/self/fd"}, std::filesystem::directory_iterator{});
}

}  // namespace

// Forked processes -----------------------------------------------------------------------------------

TEST_CASE("L1 forked children and their parent draw from one budget") {
  const Watchdog watchdog;
  constexpr int burst = 20'000;
  Limiter limiter{only(burst)};
  const Shared<Board> board;
  Children children;
  for (int i = 0; i < 4; ++i) {
    children.start([&] {
      board->arrive();
      board->granted += drain(limiter);
    });
  }
  wait_until([&] { return board->arrived == 4; });
  board->go = true;
  board->granted += drain(limiter);
  CHECK(children.wait() == 0);
  CHECK(board->granted == burst);
  CHECK_FALSE(limiter.try_acquire());
}

TEST_CASE("L1 a copy made in a child and its grandchild draw from the same budget") {
  Limiter limiter{only(3)};
  const Child child = in_child([&](Parent) {
    Limiter copy = limiter;
    if (!copy.try_acquire()) _exit(1);
    if (in_child([&](Parent) { _exit(copy.try_acquire() ? 7 : 1); }).exit_code != 7) _exit(2);
  });
  CHECK(child.end() == "exited with 0");
  CHECK(limiter.try_acquire());
  CHECK_FALSE(limiter.try_acquire());
}

TEST_CASE("L1 limiters made after the fork have nothing to do with each other") {
  const Child child = in_child([](Parent) {
    Limiter limiter{only(5)};
    _exit(drain(limiter));
  });
  CHECK(child.exit_code == 5);
  CHECK(drain(Limiter{only(5)}) == 5);
}

TEST_CASE("L4 a place that a child gives back is there for its parent") {
  const TimePoint now{1h};
  Bucket bucket{1e9, 1};
  std::vector<Reservation> places;
  for (int i = 0; i < 4; ++i) places.push_back(*bucket.reserve(now, 1, whenever));
  const Child child = in_child([&](Parent) { bucket.give_back(now, places[2]); });
  CHECK(child.end() == "exited with 0");
  CHECK(bucket.next_due(now, 1) == now + 2s);
  CHECK(bucket.reserve(now, 1, whenever)->due == now + 2s);
  CHECK(bucket.reserve(now, 1, whenever)->due == now + 4s);
}

TEST_CASE("L5 a pause in a forked child holds its parent and its siblings") {
  Limiter limiter{RateLimit{1000, 1s, 1000}};
  CHECK(in_child([&](Parent) { limiter.pause(1h); }).end() == "exited with 0");
  CHECK_FALSE(limiter.try_acquire());
  CHECK(limiter.wait_time() > 59min);
  const Child sibling = in_child([&](Parent) { _exit(limiter.try_acquire() || limiter.wait_time() < 59min ? 1 : 0); });
  CHECK(sibling.end() == "exited with 0");
}

TEST_CASE("L5 a pause in another process holds those who wait already") {
  const TimePoint now{1h};
  Bucket bucket{1e9, 1};
  bucket.reserve(now, 1, whenever);
  const Reservation waiting = *bucket.reserve(now, 1, whenever);
  CHECK_FALSE(bucket.overtaken(waiting));
  CHECK(in_child([&](Parent) { bucket.pause(now + 10s); }).end() == "exited with 0");
  CHECK(bucket.overtaken(waiting));
  CHECK(bucket.reserve(now + 1s, 1, whenever)->due == now + 10s);
}

// Names ----------------------------------------------------------------------------------------------

TEST_CASE("L1 all who name a limiter share its budget") {
  const Name name;
  Limiter first = Limiter::named(name, only(7));
  Limiter second = Limiter::named(name, only(7));
  CHECK(drain(first, 2) == 2);
  CHECK(drain(second, 2) == 2);
  const Child child = in_child([&](Parent) { _exit(drain(Limiter::named(name, only(7)), 2)); });
  CHECK(child.exit_code == 2);
  CHECK(drain(first) + drain(second) == 1);
}

TEST_CASE("L1 a named limiter goes on where those who held it left it") {
  const Name name;
  CHECK(drain(Limiter::named(name, only(4))) == 4);
  CHECK_FALSE(Limiter::named(name, only(4)).try_acquire());
}

TEST_CASE("L1 two processes that make a named limiter at the same moment get one budget") {
  const Watchdog watchdog;
  constexpr int rounds = 100;
  const Name name;
  const Shared<Board> board;
  // Spinning, because sleepers do not wake at the same moment.
  int count = 0;
  const auto meet = [&] {
    ++board->arrived;
    count += 2;
    const auto give_up = std::chrono::steady_clock::now() + 20s;
    while (board->arrived < count) {
      if (std::chrono::steady_clock::now() > give_up) throw std::runtime_error("the other process never came");
      std::this_thread::yield();
    }
  };
  const auto play = [&](bool cleans_up) {
    for (int round = 0; round < rounds; ++round) {
      meet();
      board->granted += drain(Limiter::named(name, only(3)));
      meet();
      if (cleans_up) Limiter::remove(name);
    }
  };
  Children children;
  children.start([&] { play(true); });
  CHECK_NOTHROW(play(false));
  CHECK(children.wait() == 0);
  CHECK(board->granted == 3 * rounds);
}

TEST_CASE("L1 signals do not disturb who makes a named limiter") {
  const Name name;
  const Child child = in_child([&](Parent parent) {
    struct sigaction action {};  // without SA_RESTART
    action.sa_handler = [](int) {};
    sigaction(SIGALRM, &action, nullptr);
    const itimerval often{.it_interval = {0, 100}, .it_value = {0, 100}};
    setitimer(ITIMER_REAL, &often, nullptr);
    try {
      for (int round = 0; round < 300; ++round) {
        if (drain(Limiter::named(name, only(3))) != 3) _exit(1);
        Limiter::remove(name);
      }
    } catch (const std::exception& e) {
      parent.tell(e.what());
    }
  });
  CHECK(child.end() == "exited with 0");
  CHECK(child.told.empty());
}

TEST_CASE("L1 different names are different budgets") {
  const Name one;
  const Name other;
  CHECK(drain(Limiter::named(one, only(4))) == 4);
  CHECK(drain(Limiter::named(other, only(5))) == 5);
}

TEST_CASE("L5 a pause of a named limiter holds all who name it") {
  const Name name;
  const RateLimit rate{1000, 1s, 1000};
  Limiter limiter = Limiter::named(name, rate);
  CHECK(in_child([&](Parent) { Limiter::named(name, rate).pause(1h); }).end() == "exited with 0");
  CHECK_FALSE(limiter.try_acquire());
  CHECK(Limiter::named(name, rate).wait_time() > 59min);
}

TEST_CASE("C6 a named limiter refuses another rate and names both") {
  const Name name;
  Limiter limiter = Limiter::named(name, RateLimit{10, 1h, 5});
  CHECK(limiter.try_acquire());
  const auto text_for = [&](RateLimit rate) {
    return complaint<std::invalid_argument>([&] { Limiter::named(name, rate); });
  };
  const std::string quoted = "\"" + name.text() + "\"";
  const std::string exists = "Limiter: " + quoted + " exists with RateLimit(10 per 3600s, burst 5), got ";
  const std::string remedy = ": Limiter::remove(" + quoted + ") forgets it";
  CHECK(text_for({20, 1h, 5}) == exists + "RateLimit(20 per 3600s, burst 5)" + remedy);
  CHECK(text_for({10, 90min, 5}) == exists + "RateLimit(10 per 5400s, burst 5)" + remedy);
  CHECK(text_for({10, 1h, 6}) == exists + "RateLimit(10 per 3600s, burst 6)" + remedy);
  CHECK(drain(Limiter::named(name, RateLimit{10, 1h, 5})) == 4);
}

TEST_CASE("C6 a named limiter refuses a bad rate and makes nothing") {
  const Name name;
  CHECK(says(complaint<std::invalid_argument>([&] { Limiter::named(name, RateLimit{-1}); }), "got -1"));
  CHECK_FALSE(Limiter::remove(name));
}

TEST_CASE("C6 names of limiters are letters and digits and a little more") {
  const std::string longest(200, 'x');
  const std::string all = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  const Name unique;
  for (const std::string& good : {unique.text() + longest.substr(unique.text().size()), unique.text() + all}) {
    CHECK(drain(Limiter::named(good, only(2))) == 2);
    CHECK(Limiter::remove(good));
  }
  for (const std::string& bad :
       {std::string(), longest + 'x', std::string("a/b"), std::string("/a"), std::string("a b"), std::string("a\0b", 3),
        std::string("\xc3\xa4"), std::string("a\n")}) {
    const std::string whole = "Limiter: name must be 1 to 200 letters, digits, '.', '_' or '-', got \"" + bad + "\"";
    const std::string text = whole.c_str();  // what() ends at a zero
    CHECK(complaint<std::invalid_argument>([&] { Limiter::named(bad, only(2)); }) == text);
    CHECK(complaint<std::invalid_argument>([&] { Limiter::remove(bad); }) == text);
  }
  for (const std::string dots : {".", ".."}) {  // not special behind the prefix
    Limiter::remove(dots);
    CHECK(drain(Limiter::named(dots, only(2))) == 2);
    CHECK(Limiter::remove(dots));
  }
}

TEST_CASE("C7 a removed name is forgotten and its holders keep their budget") {
  const Name name;
  CHECK_FALSE(Limiter::remove(name));
  Limiter old = Limiter::named(name, only(3));
  Limiter old_too = Limiter::named(name, only(3));
  CHECK(old.try_acquire());
  CHECK(Limiter::remove(name));
  CHECK_FALSE(Limiter::remove(name));
  CHECK(drain(Limiter::named(name, only(8))) == 8);
  CHECK(old_too.try_acquire());
  CHECK(old.try_acquire());
  CHECK_FALSE(old_too.try_acquire());
}

TEST_CASE("C7 no descriptor stays open for a named limiter") {
  const Name name;
  const Name foreign;
  Object{foreign, O_CREAT}.write("hello");
  const auto before = open_descriptors();
  Limiter limiter = Limiter::named(name, only(2));
  CHECK(open_descriptors() == before);
  CHECK_THROWS_AS(Limiter::named(name, only(3)), std::invalid_argument);
  CHECK_THROWS_AS(Limiter::named(foreign, only(3)), std::runtime_error);
  CHECK(open_descriptors() == before);
}

TEST_CASE("L1 a named limiter is for its user only") {
  const Name name;
  const mode_t mask = umask(0);
  Limiter::named(name, only(2));
  umask(mask);
  CHECK((Object{name}.about().st_mode & 07777U) == 0600U);
  Object{name}.permit(0644);
  const auto text = complaint<std::runtime_error>([&] { Limiter::named(name, only(2)); });
  CHECK(says(text, name.path()));
  CHECK(says(text, "is open to other users (mode 0644)"));
}

TEST_CASE("L1 a named limiter leaves alone what is not its own") {
  const Name name;
  const Object object{name, O_CREAT};
  std::string content;
  std::string expected;
  SECTION("a short text") {
    content = "hello";
    expected = "has 5 bytes";
  }
  SECTION("a long text") {
    content.assign(5000, 'x');
    expected = "has 5000 bytes";
  }
  SECTION("a text of the same size") {
    content.assign(sizeof(NamedBudget), 'x');
    expected = "is not a budget of this version of the library";
  }
  SECTION("a budget of another version") {
    Limiter::named(name, only(2));
    content = object.content();
    ++content[0];
    expected = "Limiter::remove(\"" + name.text() + "\") forgets it";
  }
  object.write(content);
  const auto text = complaint<std::runtime_error>([&] { Limiter::named(name, only(2)); });
  CAPTURE(text);
  CHECK(says(text, name.path()));
  CHECK(says(text, expected));
  CHECK(says(text, "remove"));
  CHECK(object.content() == content);
  CHECK(Limiter::remove(name));
  CHECK(drain(Limiter::named(name, only(2))) == 2);
}

TEST_CASE("L1 a named limiter that cannot have its size is an error and no signal") {
  const Name name;
  const Child child = in_child([&](Parent parent) {
    rlimit limit{};
    getrlimit(RLIMIT_FSIZE, &limit);
    const rlimit small{.rlim_cur = 1000, .rlim_max = limit.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    try {
      Limiter::named(name, only(2));
    } catch (const std::system_error& e) {
      if (e.code() == std::errc::file_too_large) parent.tell(e.what());
    }
    setrlimit(RLIMIT_FSIZE, &limit);
    _exit(drain(Limiter::named(name, only(2))));  // what it left is completed
  });
  CHECK(child.end() == "exited with 2");
  CHECK(says(child.told, name.path()));
}

// Processes that are killed --------------------------------------------------------------------------

TEST_CASE("L1 a named limiter is completed wherever its maker was killed") {
  const Name name;
  Limiter::named(name, only(6));
  const std::string whole = Object{name}.content();
  REQUIRE(whole.size() == sizeof(NamedBudget));
  const auto left_by_the_dead = [&](std::size_t size, std::size_t words) {
    Limiter::remove(name);
    const Object object{name, O_CREAT};
    object.resize(size);
    object.write(whole.substr(0, words * sizeof(std::uint64_t)));
  };
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{100}, sizeof(NamedBudget)}) {
    left_by_the_dead(size, 0);
    CHECK(drain(Limiter::named(name, only(6))) == 6);
  }
  for (const std::size_t words : {1U, 2U, 3U, 4U}) {
    left_by_the_dead(sizeof(NamedBudget), words);
    if (words > 1) {
      const auto text = complaint<std::invalid_argument>([&] { Limiter::named(name, RateLimit{2, 1h, 6}); });
      CHECK(
          says(text, words < 4 ? "exists with another rate, got" : "exists with RateLimit(1 per 3600s, burst 6), got"));
    }
    CHECK(drain(Limiter::named(name, only(6))) == 6);
    CHECK(Object{name}.content().substr(0, 32) == whole.substr(0, 32));
  }
}

TEST_CASE("L1 many may make a named limiter at once and some be killed at it") {
  const Watchdog watchdog;
  constexpr int burst = 50;
  std::mt19937 random{11};
  int granted_in_all = 0;
  int too_many = 0;
  int failed = 0;
  for (int round = 0; round < 200; ++round) {
    const Name name;
    const Shared<Board> board;
    Children children;
    for (int i = 0; i < 4; ++i) {
      children.start([&] {
        board->arrive();
        Limiter limiter = Limiter::named(name, only(burst));
        while (limiter.try_acquire()) ++board->granted;
      });
    }
    wait_until([&] { return board->arrived == 4; });
    board->go = true;
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(random() % 300);
    while (std::chrono::steady_clock::now() < end) {
    }
    children.kill(0);
    children.kill(1);
    Limiter limiter = Limiter::named(name, only(burst));
    board->granted += drain(limiter);
    failed += children.wait();
    granted_in_all += board->granted;
    too_many += board->granted > burst;
    failed += limiter.try_acquire();
  }
  CHECK(failed == 0);
  CHECK(too_many == 0);
  CHECK(granted_in_all >= 200 * (burst - 2));  // each that was killed lost its own at most
}

TEST_CASE("L1 processes killed while they take and give back leave a working budget") {
  const Watchdog watchdog;
  constexpr double per_token = 2000;  // nanoseconds
  constexpr int burst = 3;
  constexpr int rounds = 60;
  constexpr auto horizon = 1ms;
  const auto clock_now = [] { return TimePoint{std::chrono::steady_clock::now()}; };
  SharedMemory memory{sizeof(BucketState)};
  auto& state = *::new (memory.data()) BucketState;
  Bucket bucket{per_token, burst, std::move(memory), state};
  const Shared<Board> board;
  std::mt19937 random{12};
  const TimePoint begin = clock_now();
  for (int round = 0; round < rounds; ++round) {
    Children children;
    board->arrived = 0;
    for (int i = 0; i < 3; ++i) {
      children.start([&, seed = random()] {
        std::mt19937 mine{seed};
        std::vector<Reservation> held;
        ++board->arrived;
        while (true) {
          for (int draw = 0; draw < 12; ++draw) {
            const TimePoint now = clock_now();
            if (const auto place = bucket.reserve(now, 1, now + horizon)) held.push_back(*place);
          }
          std::shuffle(held.begin(), held.end(), mine);
          for (std::size_t k = 0; k < held.size(); ++k) {
            if (k % 4 != 0) {
              bucket.give_back(clock_now(), held[k]);
            } else {
              ++board->granted;
            }
          }
          held.clear();
        }
      });
    }
    wait_until([&] { return board->arrived == 3; });
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(random() % 3000);
    while (std::chrono::steady_clock::now() < end) {
    }
    children.kill_all();
    REQUIRE(children.wait() == 0);
    // Nobody is there any more, and the place of a waiter is at most where the killed ones' would be.
    const TimePoint now = clock_now();
    REQUIRE(bucket.reserve(now, 1, now + 2 * horizon).has_value());
    ++board->granted;
  }
  const double most = burst + static_cast<double>((clock_now() + 2 * horizon - begin).count()) / per_token;
  CHECK(board->granted > rounds);
  CHECK(board->granted <= most);
  // Each lost what it had in its hands, and no more. Those who come later look for no holes.
  const auto in_transit = std::ranges::count_if(
      state.holes, [](const BucketState::Hole& hole) { return hole.start == BucketState::in_transit; });
  CHECK(in_transit <= 3 * rounds);
  const TimePoint later = clock_now() + 1h;
  CHECK(bucket.reserve(later, 1, whenever)->due == later);
  CHECK(state.holes_left == state.holes_cleared);
}

TEST_CASE("L1 a limiter whose waiters are killed goes on for the others") {
  const Watchdog watchdog;
  Limiter limiter{RateLimit{100'000, 1s, 1}};
  const Shared<Board> board;
  std::mt19937 random{13};
  for (int round = 0; round < 50; ++round) {
    Children children;
    for (int i = 0; i < 2; ++i) {
      children.start([&] {
        ++board->arrived;
        while (true) limiter.acquire();
      });
    }
    wait_until([&] { return board->arrived == 2 * (round + 1); });
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(random() % 1000);
    while (std::chrono::steady_clock::now() < end) {
    }
    children.kill_all();
    CHECK(children.wait() == 0);
    CHECK(limiter.try_acquire_for(1s));
  }
}

TEST_CASE("L4 a hole that a killed process left half-way hides no other") {
  const TimePoint now{1h};
  SharedMemory memory{sizeof(BucketState)};
  auto& state = *::new (memory.data()) BucketState;
  Bucket bucket{1e9, 1, std::move(memory), state};
  for (std::size_t i = 0; i < 5; ++i) state.holes[2 * i].start = BucketState::in_transit;
  std::vector<Reservation> places;
  for (int i = 0; i < 8; ++i) places.push_back(*bucket.reserve(now, 1, whenever));
  for (const std::size_t i : {5U, 1U, 3U}) bucket.give_back(now, places[i]);
  for (const auto due : {1s, 3s, 5s, 8s}) CHECK(bucket.reserve(now, 1, whenever)->due == now + due);
}

TEST_CASE("L4 with all holes lost to killed processes a place given back is lost and nobody hangs") {
  const TimePoint now{1h};
  SharedMemory memory{sizeof(BucketState)};
  auto& state = *::new (memory.data()) BucketState;
  Bucket bucket{1e9, 1, std::move(memory), state};
  for (BucketState::Hole& hole : state.holes) hole.start = BucketState::in_transit;
  state.holes_left = 1;
  std::vector<Reservation> places;
  for (int i = 0; i < 4; ++i) places.push_back(*bucket.reserve(now, 1, whenever));
  bucket.give_back(now, places[1]);
  CHECK(bucket.reserve(now, 1, whenever)->due == now + 4s);
  bucket.give_back(now, places[3]);
  CHECK(bucket.reserve(now, 1, whenever)->due == now + 5s);
}
