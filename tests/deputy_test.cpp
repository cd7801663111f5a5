// The deputy: who drives while the driver is in an item, and what each of them sees of the other.
#include "pyarallel/detail/run/deputy.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "pyarallel/detail/function_ref.hpp"
#include "support/catch.hpp"
#include "support/wait.hpp"
#include "support/watchdog.hpp"

using pyarallel::detail::Deputy;
using pyarallel::detail::FunctionRef;
using support::dawdle;
using support::wait_until;
using support::Watchdog;
using namespace std::chrono_literals;

namespace {

/// A run with a stand-in that drives in small steps. What is not atomic belongs to whoever drives: ThreadSanitizer sees
/// where two do, and the checks where one does not see what the other did.
struct TestRun {
  explicit TestRun(Deputy& of) : deputy(of) { deputy.begin(drive, call); }
  TestRun(const TestRun&) = delete;
  TestRun& operator=(const TestRun&) = delete;

  void stand_in(FunctionRef<bool()> enough) {
    if (driving || !deputy.stands_in() || std::this_thread::get_id() == driver) wrong = true;
    driving = true;
    ++stints;
    thread = static_cast<pid_t>(syscall(SYS_gettid));
    ++begun;
    do {
      work.push_back(static_cast<int>(work.size()));
      ++steps;
      std::this_thread::yield();
    } while (!enough());
    if (slow_to_end) dawdle();
    driving = false;
  }

  /// The driver is in an item that takes until the deputy has done something.
  void long_item() {
    const int before = stints;
    const int begun_before = begun;
    const int calls_before = calls;
    deputy.while_out([&] {
      wait_until([&] { return begun > begun_before; });
      const int now = steps;
      wait_until([&] { return steps > now; });
    });
    if (driving || deputy.stands_in() || stints != before + 1 || calls != calls_before + 1) wrong = true;
    look_at_work();
  }

  /// What the driver does itself.
  void drive_a_little() {
    if (driving) wrong = true;
    work.push_back(static_cast<int>(work.size()));
    ++own_steps;
  }

  void look_at_work() {
    if (work.size() != static_cast<std::size_t>(steps + own_steps)) wrong = true;
    for (std::size_t i = 0; i < work.size(); ++i) {
      if (work[i] != static_cast<int>(i)) wrong = true;
    }
  }

  Deputy& deputy;
  const std::thread::id driver = std::this_thread::get_id();
  const std::function<void(FunctionRef<bool()>)> drive_code = [this](FunctionRef<bool()> enough) { stand_in(enough); };
  const std::function<void()> call_code = [this] {
    if (std::this_thread::get_id() != driver) wrong = true;
    ++calls;
  };
  const Deputy::StandIn drive{drive_code};
  const FunctionRef<void()> call{call_code};

  bool driving = false;
  bool wrong = false;
  bool slow_to_end = false;
  int stints = 0;
  int own_steps = 0;
  int calls = 0;
  pid_t thread = 0;
  std::vector<int> work;
  std::atomic<int> begun{0};
  std::atomic<int> steps{0};
};

/// How often the thread has gone to sleep so far.
std::string sleeps_of(pid_t thread) {
  std::ifstream status{"/proc/self/task/" + std::to_string(thread) + "/status"};
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("voluntary_ctxt_switches")) return line;
  }
  return {};
}

/// Returns when the thread sleeps and does not wake up any more by itself. (Perhaps too early where the machine is
/// busy: then the test shows less, and fails no more than otherwise.)
void wait_until_asleep(pid_t thread) {
  wait_until([thread] {
    const std::string before = sleeps_of(thread);
    std::this_thread::sleep_for(30ms);
    return sleeps_of(thread) == before;
  });
}

}  // namespace

TEST_CASE("The deputy drives while the driver is in an item that waits for that") {
  const Watchdog watchdog;
  Deputy deputy;
  TestRun run{deputy};
  run.long_item();
  CHECK_FALSE(run.wrong);
  CHECK(run.stints == 1);
}

TEST_CASE("The deputy has stopped when the driver is back, and the driver sees all that it did") {
  const Watchdog watchdog;
  Deputy deputy;
  TestRun run{deputy};
  run.slow_to_end = true;
  for (int i = 0; i < 50; ++i) {
    run.drive_a_little();
    run.long_item();
  }
  CHECK_FALSE(run.wrong);
  CHECK(run.stints == 50);
}

TEST_CASE("The deputy sees all that the driver did before it went out") {
  const Watchdog watchdog;
  Deputy deputy;
  int number = 0;  // first the driver adds one, then the deputy
  bool wrong = false;
  std::atomic<int> begun{0};
  const auto stand_in = [&](FunctionRef<bool()> enough) {
    if (number % 2 != 1) wrong = true;
    ++number;
    ++begun;
    while (!enough()) std::this_thread::yield();
  };
  const auto come_back = [] {};
  const Deputy::StandIn drive{stand_in};
  const FunctionRef<void()> call{come_back};
  deputy.begin(drive, call);
  for (int i = 0; i < 50; ++i) {
    ++number;
    deputy.while_out([&] { wait_until([&] { return begun == i + 1; }); });
    if (number != 2 * (i + 1)) wrong = true;
  }
  CHECK_FALSE(wrong);
}

TEST_CASE("The deputy has driven enough only when the driver is back, and knows it when it is called") {
  const Watchdog watchdog;
  Deputy deputy;
  std::atomic<int> asked{0};
  std::atomic<bool> driver_is_back{false};
  std::atomic<bool> called{false};
  bool too_early = false;
  bool too_late = false;
  int calls = 0;
  const auto stand_in = [&](FunctionRef<bool()> enough) {
    for (; asked < 100; ++asked) too_early = too_early || enough();
    // Somebody who sleeps, and is woken by the call.
    wait_until([&] { return called.load(); });
    too_early = too_early || !driver_is_back;
    too_late = !enough();
  };
  const auto come_back = [&] {
    ++calls;
    called = true;
  };
  const Deputy::StandIn drive{stand_in};
  const FunctionRef<void()> call{come_back};
  deputy.begin(drive, call);
  for (int i = 0; i < 20; ++i) {
    asked = 0;
    driver_is_back = false;
    called = false;
    deputy.while_out([&] {
      wait_until([&] { return asked == 100; });
      driver_is_back = true;
    });
    CHECK_FALSE(too_early);
    CHECK_FALSE(too_late);
    CHECK(calls == i + 1);
  }
}

TEST_CASE("The deputy knows that it stands in, and the driver that nobody does") {
  const Watchdog watchdog;
  Deputy deputy;
  std::atomic<int> begun{0};
  bool always = true;
  const auto stand_in = [&](FunctionRef<bool()> enough) {
    always = always && deputy.stands_in();
    ++begun;
    while (!enough()) always = always && deputy.stands_in();
    always = always && deputy.stands_in();
  };
  const auto come_back = [] {};
  const Deputy::StandIn drive{stand_in};
  const FunctionRef<void()> call{come_back};
  CHECK_FALSE(deputy.stands_in());
  deputy.begin(drive, call);
  for (int i = 0; i < 20; ++i) {
    CHECK_FALSE(deputy.stands_in());
    deputy.while_out([&] { wait_until([&] { return begun == i + 1; }); });
    CHECK_FALSE(deputy.stands_in());
    CHECK(always);
  }
}

TEST_CASE("The deputy is hardly ever needed by short items, and never in the way") {
  const Watchdog watchdog;
  constexpr int count = 20'000;
  Deputy deputy;
  TestRun run{deputy};
  int items = 0;
  for (int i = 0; i < count; ++i) {
    run.drive_a_little();
    deputy.while_out([&] { ++items; });
    if (run.driving || deputy.stands_in()) run.wrong = true;
  }
  run.look_at_work();
  CHECK(items == count);
  // Where the system stopped the driver for longer than a while, the deputy came.
  CHECK(run.calls >= run.stints);
  CHECK_FALSE(run.wrong);
  run.long_item();
  CHECK_FALSE(run.wrong);
}

TEST_CASE("The deputy comes to long items among short ones, however long those take") {
  const Watchdog watchdog;
  Deputy deputy;
  TestRun run{deputy};
  for (int i = 0; i < 30; ++i) {
    for (int j = 0; j < 200; ++j) {
      run.drive_a_little();
      deputy.while_out([] {});
    }
    // About as long as it takes the deputy to come, so that both are quick now and then.
    for (int j = 0; j < 3; ++j) deputy.while_out(dawdle);
    if (run.driving || deputy.stands_in()) run.wrong = true;
    run.drive_a_little();
    run.look_at_work();
    run.long_item();
  }
  CHECK_FALSE(run.wrong);
}

TEST_CASE("A deputy stands in for one run after the other, each by its own code") {
  const Watchdog watchdog;
  Deputy deputy;
  for (int i = 0; i < 30; ++i) {
    // Elsewhere each time, and gone before the next one: a sanitizer sees who looks at the last one.
    const auto run = std::make_unique<TestRun>(deputy);
    if (i % 3 != 1) deputy.while_out([] {});
    if (i % 3 != 2) run->long_item();
    if (i % 3 == 0) run->long_item();
    CHECK_FALSE(run->wrong);
    if (i % 3 == 0) CHECK(run->stints >= 2);
  }
}

TEST_CASE("A deputy that is not asked by a run comes to the next one") {
  const Watchdog watchdog;
  Deputy deputy;
  { const TestRun nothing{deputy}; }
  { const TestRun nothing{deputy}; }
  TestRun run{deputy};
  run.long_item();
  CHECK_FALSE(run.wrong);
}

TEST_CASE("A deputy that was never asked comes and goes") {
  const Watchdog watchdog;
  for (int i = 0; i < 200; ++i) {
    Deputy deputy;
    const TestRun run{deputy};
  }
}

TEST_CASE("A deputy that has no run is nobody") {
  const auto deputy = std::make_unique<Deputy>();
  CHECK_FALSE(deputy->stands_in());
}

TEST_CASE("A driver without a run may be out, and nobody drives") {
  Deputy deputy;
  int items = 0;
  for (int i = 0; i < 100; ++i) deputy.while_out([&] { ++items; });
  CHECK(items == 100);
  CHECK_FALSE(deputy.stands_in());
  // And its times out do not count later.
  const Watchdog watchdog;
  TestRun run{deputy};
  run.long_item();
  CHECK_FALSE(run.wrong);
}

TEST_CASE("A deputy goes at once after short items, and after long ones") {
  const Watchdog watchdog;
  for (int i = 0; i < 50; ++i) {
    Deputy deputy;
    TestRun run{deputy};
    for (int j = 0; j < i; ++j) deputy.while_out([] {});
    if (i % 2 == 0) run.long_item();
    CHECK_FALSE(run.wrong);
  }
}

TEST_CASE("A deputy that nobody needs falls asleep, and comes when it is needed") {
  const Watchdog watchdog;
  Deputy deputy;
  TestRun run{deputy};
  run.long_item();
  for (int i = 0; i < 3; ++i) {
    wait_until_asleep(run.thread);
    run.long_item();
    CHECK_FALSE(run.wrong);
    CHECK(run.stints == i + 2);
  }
}

TEST_CASE("A deputy that is woken by a short item comes to the next one that is long") {
  const Watchdog watchdog;
  Deputy deputy;
  TestRun run{deputy};
  run.long_item();
  for (int i = 0; i < 2; ++i) {
    wait_until_asleep(run.thread);
    deputy.while_out([] {});
    run.long_item();
    wait_until_asleep(run.thread);
    deputy.while_out([] {});
    CHECK_FALSE(run.wrong);
  }
}

TEST_CASE("A deputy that is asleep stands in for the next run") {
  const Watchdog watchdog;
  Deputy deputy;
  pid_t thread = 0;
  {
    TestRun run{deputy};
    run.long_item();
    thread = run.thread;
  }
  wait_until_asleep(thread);
  TestRun run{deputy};
  run.long_item();
  CHECK_FALSE(run.wrong);
  CHECK(run.stints == 1);
}

TEST_CASE("A deputy that is asleep goes when it is not needed any more") {
  const Watchdog watchdog;
  Deputy deputy;
  TestRun run{deputy};
  run.long_item();
  wait_until_asleep(run.thread);
}

TEST_CASE("A driver goes out at any moment while its deputy falls asleep") {
  const Watchdog watchdog;
  Deputy deputy;
  TestRun run{deputy};
  run.long_item();
  for (int i = 0; i < 12; ++i) {
    // The last look is about 50 ms after the first.
    std::this_thread::sleep_for(48ms + i * 500us);
    run.long_item();
  }
  CHECK_FALSE(run.wrong);
  CHECK(run.stints == 13);
}

TEST_CASE("Several drivers have a deputy each") {
  const Watchdog watchdog;
  std::atomic<int> wrong{0};
  {
    std::vector<std::jthread> drivers;
    for (int i = 0; i < 4; ++i) {
      drivers.emplace_back([&] {
        Deputy deputy;
        TestRun run{deputy};
        for (int j = 0; j < 10; ++j) {
          for (int k = 0; k < 100; ++k) deputy.while_out([] {});
          run.long_item();
        }
        if (run.wrong) ++wrong;
      });
    }
  }
  CHECK(wrong == 0);
}
