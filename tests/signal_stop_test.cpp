// SignalStop: signals that request a stop (E3), also while forked workers run (P4).
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <pyarallel.hpp>
#include <pyarallel/detail/spin.hpp>
#include <pyarallel/signal_stop.hpp>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/child.hpp"
#include "support/processes.hpp"
#include "support/wait.hpp"
#include "support/watchdog.hpp"

using namespace pyarallel;
using support::in_child;
using support::Parent;
using support::wait_until;
using support::Watchdog;

namespace {

struct sigaction disposition(int signal) {
  struct sigaction action {};
  sigaction(signal, nullptr, &action);
  return action;
}

void handle(int signal, void (*handler)(int), int flags = 0) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigaction(signal, &action, nullptr);
}

/// A signal as the test wants it, and in the end as it was. (A shell may start the test with SIGINT ignored.)
class Disposition {
 public:
  Disposition(int signal, void (*handler)(int), int flags = 0) : signal_(signal), before_(disposition(signal)) {
    handle(signal, handler, flags);
  }
  Disposition(const Disposition&) = delete;
  Disposition& operator=(const Disposition&) = delete;
  ~Disposition() { sigaction(signal_, &before_, nullptr); }

 private:
  int signal_;
  struct sigaction before_;
};

std::atomic<int> old_calls{0};
void count_call(int) { ++old_calls; }
std::atomic<int> other_calls{0};
void count_other_call(int) { ++other_calls; }

/// The handler of the program that was there before.
class OldHandler : public Disposition {
 public:
  explicit OldHandler(int signal) : Disposition(signal, count_call) { old_calls = 0; }
};

bool calls_back(int signal) { return disposition(signal).sa_handler == count_call; }

void wait_for_stop(const SignalStop& stop) {
  wait_until([&] { return stop.token().stop_requested(); });
}

/// How often stop callbacks ran, once for each object that was told.
class Stops {
 public:
  explicit Stops(const SignalStop& stop) : callback_(stop.token(), [this] { ++count_; }) {}
  int count() const { return count_; }

 private:
  std::atomic<int> count_{0};
  std::stop_callback<std::function<void()>> callback_;
};

std::size_t entries(const char* path) {
  DIR* const folder = opendir(path);
  if (folder == nullptr) return 0;
  std::size_t count = 0;
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}
std::size_t descriptors() { return entries("/proc/self/fd"); }
std::size_t threads() { return entries("/proc/self/task"); }

std::string message_of(std::initializer_list<int> signals) {
  try {
    const SignalStop stop(signals);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no std::invalid_argument";
}

/// Crashes are planned here: they should not leave core files.
void leave_no_core() {
  const rlimit none{0, 0};
  setrlimit(RLIMIT_CORE, &none);
}

}  // namespace

// One object -----------------------------------------------------------------------------------------------------

TEST_CASE("E3 a signal requests the stop of a SignalStop") {
  const Watchdog watchdog;
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) {
    CAPTURE(signal);
    const SignalStop stop{SIGINT, SIGTERM, SIGUSR1};
    CHECK(stop.token().stop_possible());
    CHECK_FALSE(stop.token().stop_requested());
    CHECK(stop.signal() == 0);
    raise(signal);
    wait_for_stop(stop);
    CHECK(stop.signal() == signal);
  }
}

TEST_CASE("E3 a signal sent to the process requests the stop of a SignalStop") {
  const Watchdog watchdog;
  const SignalStop stop{SIGUSR1};
  kill(getpid(), SIGUSR1);
  wait_for_stop(stop);
  CHECK(stop.signal() == SIGUSR1);
}

TEST_CASE("E3 stop callbacks of a SignalStop run in a thread of its own that takes no signals") {
  const Watchdog watchdog;
  const SignalStop stop{SIGUSR1};
  std::thread::id thread;
  std::string not_blocked;
  std::atomic<bool> done{false};
  const std::stop_callback callback(stop.token(), [&] {
    thread = std::this_thread::get_id();
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    for (const int signal : {SIGHUP, SIGINT, SIGTERM, SIGQUIT, SIGUSR1, SIGUSR2, SIGCHLD, SIGALRM, SIGPIPE, SIGWINCH}) {
      if (sigismember(&mask, signal) != 1) not_blocked += std::to_string(signal) + " ";
    }
    done = true;
  });
  raise(SIGUSR1);
  wait_until([&] { return done.load(); });
  CHECK(thread != std::this_thread::get_id());
  CHECK(not_blocked.empty());
}

TEST_CASE("E3 a SignalStop leaves the signal mask of its thread as it is") {
  const auto mask_of_thread = [] {
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    std::string text;
    for (int signal = 1; signal < NSIG; ++signal) text += sigismember(&mask, signal) == 1 ? '1' : '0';
    return text;
  };
  const std::string before = mask_of_thread();
  {
    const SignalStop stop{SIGUSR1};
    CHECK(mask_of_thread() == before);
    raise(SIGUSR1);
    CHECK(mask_of_thread() == before);
  }
  CHECK(mask_of_thread() == before);
}

TEST_CASE("E3 a signal that SignalStop catches leaves errno as it is") {
  const OldHandler old(SIGUSR1);
  const SignalStop outer{SIGUSR1};
  const SignalStop inner{SIGUSR1};
  for (int i = 0; i < 3; ++i) {
    errno = 1234;
    raise(SIGUSR1);
    CHECK(errno == 1234);
  }
  CHECK(old_calls == 1);
}

TEST_CASE("E3 system calls go on after a signal that SignalStop catches") {
  const SignalStop stop{SIGUSR1};
  const auto flags = disposition(SIGUSR1).sa_flags;
  CHECK((flags & SA_RESTART) != 0);
  CHECK((flags & SA_ONSTACK) != 0);
}

TEST_CASE("E3 a SignalStop leaves neither threads nor descriptors behind") {
  const Watchdog watchdog;
  { const SignalStop warm_up{SIGUSR1}; }
  const auto descriptors_before = descriptors();
  const auto threads_before = threads();
  for (int i = 0; i < 50; ++i) {
    const SignalStop stop{SIGUSR1, SIGUSR2};
    const SignalStop inner{SIGUSR1};
    if (i % 2 == 0) raise(SIGUSR1);
  }
  CHECK(descriptors() == descriptors_before);
  // A thread that was joined may still be listed for a moment.
  CHECK_NOTHROW(wait_until([&] { return threads() == threads_before; }));
}

TEST_CASE("E3 the descriptors of a SignalStop are closed on exec") {
  std::vector<int> open;
  for (int number = 3; number < 100; ++number) {
    if (fcntl(number, F_GETFD) >= 0) open.push_back(number);
  }
  const SignalStop stop{SIGUSR1};
  int count = 0;
  for (int number = 3; number < 100; ++number) {
    if (std::ranges::find(open, number) != open.end()) continue;
    const int flags = fcntl(number, F_GETFD);
    if (flags < 0) continue;
    ++count;
    CHECK((flags & FD_CLOEXEC) != 0);
  }
  CHECK(count == 2);
}

// What was there before ------------------------------------------------------------------------------------------

TEST_CASE("E3 the handler from before is back when a SignalStop is destroyed") {
  const Disposition kept(SIGUSR1, SIG_DFL);
  const auto same_after = [](const struct sigaction& before) {
    sigaction(SIGUSR1, &before, nullptr);
    const struct sigaction as_installed = disposition(SIGUSR1);
    {
      const SignalStop stop{SIGUSR1};
      CHECK(disposition(SIGUSR1).sa_handler != as_installed.sa_handler);
    }
    const struct sigaction after = disposition(SIGUSR1);
    CHECK(after.sa_handler == as_installed.sa_handler);
    CHECK(after.sa_flags == as_installed.sa_flags);
    for (int signal = 1; signal < NSIG; ++signal) {
      CHECK(sigismember(&after.sa_mask, signal) == sigismember(&as_installed.sa_mask, signal));
    }
  };
  struct sigaction action {};
  SECTION("default") { same_after(action); }
  SECTION("ignored") {
    action.sa_handler = SIG_IGN;
    same_after(action);
  }
  SECTION("a function") {
    action.sa_handler = count_call;
    action.sa_flags = SA_NODEFER;
    sigaddset(&action.sa_mask, SIGUSR2);
    same_after(action);
  }
  SECTION("a function that wants to know more") {
    action.sa_sigaction = [](int, siginfo_t*, void*) {};
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigaddset(&action.sa_mask, SIGTERM);
    same_after(action);
  }
}

TEST_CASE("E3 a handler that was installed after a SignalStop stays when that is destroyed") {
  const OldHandler old(SIGUSR1);
  for (const bool told : {false, true}) {
    CAPTURE(told);
    handle(SIGUSR1, count_call);
    {
      const SignalStop stop{SIGUSR1};
      if (told) raise(SIGUSR1);
      handle(SIGUSR1, count_other_call);
    }
    CHECK(disposition(SIGUSR1).sa_handler == count_other_call);
  }
}

TEST_CASE("E3 the next arrival of a signal runs the handler from before") {
  const Watchdog watchdog;
  const OldHandler old(SIGUSR1);
  const SignalStop stop{SIGUSR1};
  raise(SIGUSR1);
  wait_for_stop(stop);
  CHECK(old_calls == 0);
  CHECK(calls_back(SIGUSR1));
  raise(SIGUSR1);
  raise(SIGUSR1);
  CHECK(old_calls == 2);
  CHECK(stop.signal() == SIGUSR1);
}

TEST_CASE("E3 the next arrival of a signal runs a handler from before that wants to know more") {
  const Disposition kept(SIGUSR1, SIG_DFL);
  static std::atomic<pid_t> sender;
  sender = 0;
  struct sigaction action {};
  action.sa_sigaction = [](int, siginfo_t* info, void*) { sender = info->si_pid; };
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGUSR1, &action, nullptr);
  const SignalStop stop{SIGUSR1};
  raise(SIGUSR1);
  CHECK(sender == 0);
  raise(SIGUSR1);
  CHECK(sender == getpid());
}

TEST_CASE("E3 a signal that was ignored before requests a stop and is ignored then") {
  const Watchdog watchdog;
  const Disposition ignored(SIGUSR1, SIG_IGN);
  const SignalStop stop{SIGUSR1};
  raise(SIGUSR1);
  wait_for_stop(stop);
  raise(SIGUSR1);
  CHECK(disposition(SIGUSR1).sa_handler == SIG_IGN);
}

TEST_CASE("E3 the second Ctrl-C ends a program that had no handler") {
  if (!support::children_may_start_threads) return;
  for (const int signal : {SIGINT, SIGTERM}) {
    CAPTURE(signal);
    const auto child = in_child([&](const Parent& parent) {
      handle(signal, SIG_DFL);
      const SignalStop stop{SIGINT, SIGTERM};
      kill(getpid(), signal);
      wait_for_stop(stop);
      parent.tell("asked to stop");
      kill(getpid(), signal);
      support::hang();
    });
    CHECK(child.end() == "killed by signal " + std::to_string(signal));
    CHECK(child.told == "asked to stop");
  }
}

TEST_CASE("E3 each of the signals of a SignalStop has its old effect only from its second arrival on") {
  const OldHandler old(SIGUSR1);
  const Disposition old2(SIGUSR2, count_call);
  const SignalStop stop{SIGUSR1, SIGUSR2};
  raise(SIGUSR1);
  raise(SIGUSR2);
  CHECK(old_calls == 0);
  CHECK(stop.signal() == SIGUSR1);
  raise(SIGUSR2);
  CHECK(old_calls == 1);
  raise(SIGUSR1);
  CHECK(old_calls == 2);
  CHECK(stop.signal() == SIGUSR1);
}

TEST_CASE("E3 a signal that is listed twice counts once") {
  const OldHandler old(SIGUSR1);
  const SignalStop stop{SIGUSR1, SIGUSR1};
  raise(SIGUSR1);
  CHECK(old_calls == 0);
  raise(SIGUSR1);
  CHECK(old_calls == 1);
}

// Several objects ------------------------------------------------------------------------------------------------

TEST_CASE("E3 of several SignalStops for a signal the newest is asked first") {
  const Watchdog watchdog;
  const OldHandler old(SIGUSR1);
  const SignalStop first{SIGUSR1};
  const SignalStop second{SIGUSR1};
  const SignalStop third{SIGUSR1};
  const auto signals = [&] { return std::array{first.signal(), second.signal(), third.signal()}; };
  raise(SIGUSR1);
  CHECK(signals() == std::array{0, 0, SIGUSR1});
  raise(SIGUSR1);
  CHECK(signals() == std::array{0, SIGUSR1, SIGUSR1});
  raise(SIGUSR1);
  CHECK(signals() == std::array{SIGUSR1, SIGUSR1, SIGUSR1});
  CHECK(old_calls == 0);
  raise(SIGUSR1);
  CHECK(old_calls == 1);
  wait_for_stop(first);
}

TEST_CASE("E3 SignalStops are destroyed in any order") {
  const Watchdog watchdog;
  const OldHandler old(SIGUSR1);
  std::array order{0, 1, 2, 3};
  do {
    CAPTURE(order);
    for (int told = 0; told <= 4; ++told) {
      CAPTURE(told);
      std::array<std::unique_ptr<SignalStop>, 4> stops;
      for (auto& stop : stops) stop = std::make_unique<SignalStop>(std::initializer_list<int>{SIGUSR1});
      old_calls = 0;
      for (int i = 0; i < told; ++i) raise(SIGUSR1);
      int untold = 4 - told;
      for (const int next : order) {
        CHECK(calls_back(SIGUSR1) == (untold == 0));
        auto& stop = stops[static_cast<std::size_t>(next)];
        if (stop->signal() == 0) --untold;
        stop.reset();
      }
      CHECK(calls_back(SIGUSR1));
      CHECK(old_calls == 0);
      raise(SIGUSR1);
      CHECK(old_calls == 1);
    }
  } while (std::ranges::next_permutation(order).found);
}

TEST_CASE("E3 a SignalStop that follows another before that one is gone is told") {
  const Watchdog watchdog;
  const OldHandler old(SIGUSR1);
  auto stop = std::make_unique<SignalStop>(std::initializer_list<int>{SIGUSR1});
  for (int i = 0; i < 50; ++i) {
    stop = std::make_unique<SignalStop>(std::initializer_list<int>{SIGUSR1});
    if (i % 3 != 0) continue;
    raise(SIGUSR1);
    CHECK(stop->signal() == SIGUSR1);
  }
  CHECK(old_calls == 0);
  stop.reset();
  CHECK(calls_back(SIGUSR1));
}

TEST_CASE("E3 a SignalStop over a handler over a SignalStop") {
  const OldHandler old(SIGUSR1);
  other_calls = 0;
  auto below = std::make_unique<SignalStop>(std::initializer_list<int>{SIGUSR1});
  handle(SIGUSR1, count_other_call);
  auto above = std::make_unique<SignalStop>(std::initializer_list<int>{SIGUSR1});
  SECTION("the next arrival runs the handler between") {
    raise(SIGUSR1);
    CHECK(above->signal() == SIGUSR1);
    raise(SIGUSR1);
    CHECK(other_calls == 1);
    CHECK(below->signal() == 0);
  }
  SECTION("the handler between is back when the upper one is destroyed") {
    above.reset();
    CHECK(disposition(SIGUSR1).sa_handler == count_other_call);
    below.reset();
    CHECK(disposition(SIGUSR1).sa_handler == count_other_call);
  }
  SECTION("the handler between is back when both are destroyed") {
    below.reset();
    CHECK(disposition(SIGUSR1).sa_handler != count_other_call);
    above.reset();
    CHECK(disposition(SIGUSR1).sa_handler == count_other_call);
  }
  SECTION("the lower one is still asked when the handler between was taken away") {
    above.reset();
    handle(SIGUSR1, SIG_DFL);
    above = std::make_unique<SignalStop>(std::initializer_list<int>{SIGUSR1});
    handle(SIGUSR1, count_call);
    below.reset();
    CHECK(calls_back(SIGUSR1));
  }
  CHECK(old_calls == 0);
}

TEST_CASE("E3 a handler that calls that of a SignalStop requests a stop and runs once for each signal") {
  const OldHandler old(SIGUSR1);
  static void (*ours)(int) = nullptr;
  const auto chaining = [](int signal) {
    ++other_calls;
    ours(signal);
  };
  other_calls = 0;
  std::optional<SignalStop> stop;
  stop.emplace(std::initializer_list<int>{SIGUSR1});
  ours = disposition(SIGUSR1).sa_handler;
  handle(SIGUSR1, chaining);
  SECTION("while it lives") {
    raise(SIGUSR1);
    CHECK(stop->signal() == SIGUSR1);
    CHECK(other_calls == 1);
    raise(SIGUSR1);
    CHECK(other_calls == 2);
  }
  SECTION("after it") {
    stop.reset();
    raise(SIGUSR1);
    CHECK(other_calls == 1);
  }
  SECTION("and never runs for ever") {
    stop.reset();
    stop.emplace(std::initializer_list<int>{SIGUSR1});
    for (int i = 0; i < 5; ++i) raise(SIGUSR1);
    CHECK(stop->signal() == SIGUSR1);
    CHECK(other_calls >= 4);
    CHECK(other_calls <= 5);
  }
  CHECK(old_calls == 0);
}

TEST_CASE("E3 the handler of a SignalStop that somebody saved and installs again passes signals on") {
  const OldHandler old(SIGUSR1);
  struct sigaction saved {};
  {
    const SignalStop stop{SIGUSR1};
    saved = disposition(SIGUSR1);
    handle(SIGUSR1, count_other_call);
  }
  sigaction(SIGUSR1, &saved, nullptr);
  raise(SIGUSR1);
  CHECK(old_calls == 1);
  CHECK(calls_back(SIGUSR1));
}

// Storms ---------------------------------------------------------------------------------------------------------

TEST_CASE("E3 no signal is lost while SignalStops come and go") {
  const Watchdog watchdog;
  const OldHandler old(SIGUSR1);
  std::atomic<bool> done{false};
  std::atomic<int> raised{0};
  std::jthread shooter([&] {
    while (!done) {
      raise(SIGUSR1);
      ++raised;
      if (raised % 8 == 0) std::this_thread::yield();
    }
  });
  int stopped = 0;
  for (int i = 0; i < 500 || raised < 1000; ++i) {
    auto outer = std::make_unique<SignalStop>(std::initializer_list<int>{SIGUSR1});
    std::atomic<int> stops{0};
    const std::stop_callback on_stop(outer->token(), [&] { ++stops; });
    if (i % 3 == 0) {
      auto inner = std::make_unique<SignalStop>(std::initializer_list<int>{SIGUSR1});
      const std::stop_callback on_inner_stop(inner->token(), [&] { ++stops; });
      if (i % 2 == 0) outer.reset();
      inner.reset();
    }
    outer.reset();
    stopped += stops;
  }
  done = true;
  shooter.join();
  CHECK(stopped > 0);
  CHECK(stopped + old_calls == raised);
  CHECK(calls_back(SIGUSR1));
}

TEST_CASE("E3 a signal that meets a SignalStop that comes or goes tells one and leaves the rest in their order") {
  const Watchdog watchdog;
  const OldHandler old(SIGUSR1);
  // Without the threads, which would keep the two apart.
  auto& caught = detail::CaughtSignal::of(SIGUSR1);
  const detail::Descriptor nowhere{open("/dev/null", O_WRONLY | O_CLOEXEC)};
  constexpr int rounds = 4000;
  std::atomic<int> begun{0};
  std::atomic<int> raised{0};
  const auto wait_for = [](const std::atomic<int>& counter, int round) {
    for (int spin = 0; counter < round; ++spin) {
      if (spin % 100 == 99) std::this_thread::yield();
    }
  };
  // The other thread takes its time to see what has begun.
  const auto hesitate = [](int round) {
    for (int i = 0; i < round % 64 * 16; ++i) detail::pause_cpu();
  };
  std::jthread shooter([&] {
    for (int round = 1; round <= rounds; ++round) {
      wait_for(begun, round);
      raise(SIGUSR1);
      raised = round;
    }
  });
  int wrong = 0;
  for (int round = 1; round <= rounds; ++round) {
    detail::SignalInbox outer{.pipe = nowhere.get()};
    detail::SignalInbox inner{.pipe = nowhere.get()};
    old_calls = 0;
    const auto told = [&] { return (outer.first != 0 ? 1 : 0) + (inner.first != 0 ? 1 : 0); };
    const bool comes = round / 64 % 2 == 0;
    auto* const first = caught.add(SIGUSR1, outer);
    if (comes) {
      begun = round;
      hesitate(round);
      auto* const second = caught.add(SIGUSR1, inner);
      wait_for(raised, round);
      if (told() != 1 || old_calls != 0) ++wrong;
      raise(SIGUSR1);
      if (told() != 2 || old_calls != 0) ++wrong;
      raise(SIGUSR1);
      if (old_calls != 1) ++wrong;
      caught.remove(SIGUSR1, second);
      caught.remove(SIGUSR1, first);
    } else {
      begun = round;
      hesitate(round);
      caught.remove(SIGUSR1, first);
      wait_for(raised, round);
      if (told() + old_calls != 1) ++wrong;
    }
    if (!calls_back(SIGUSR1)) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("E3 signals from many threads to many threads while SignalStops come and go") {
  const Watchdog watchdog;
  const OldHandler old(SIGUSR1);
  const Disposition old2(SIGUSR2, count_call);
  std::atomic<bool> done{false};
  std::atomic<int> raised{0};
  {
    std::jthread target([&] {
      while (!done) std::this_thread::yield();
    });
    const std::array targets{pthread_self(), target.native_handle()};
    std::vector<std::jthread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&, i] {
        for (std::size_t n = 0; !done; ++n) {
          pthread_kill(targets[n % targets.size()], n % 2 == 0 ? SIGUSR1 : SIGUSR2);
          raise(i == 0 ? SIGUSR1 : SIGUSR2);
          ++raised;
          std::this_thread::yield();
        }
      });
    }
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        for (int round = 0; round < 150; ++round) {
          const SignalStop stop{SIGUSR1, SIGUSR2};
          if (round % 4 == 0) wait_until([&] { return stop.token().stop_requested(); });
        }
      });
    }
    for (auto& thread : std::views::drop(threads, 3)) thread.join();
    done = true;
  }
  CHECK(raised > 0);
  CHECK(calls_back(SIGUSR1));
  CHECK(calls_back(SIGUSR2));
  // All is as if nothing had been.
  old_calls = 0;
  const SignalStop stop{SIGUSR1};
  raise(SIGUSR1);
  CHECK(stop.signal() == SIGUSR1);
  CHECK(old_calls == 0);
  raise(SIGUSR1);
  CHECK(old_calls == 1);
}

// Forked children of the program's own ---------------------------------------------------------------------------

TEST_CASE("E3 a signal in a forked child has its old effect and does not stop the parent") {
  const Watchdog watchdog;
  for (const bool handled : {true, false}) {
    CAPTURE(handled);
    const Disposition old(SIGUSR1, handled ? count_call : SIG_DFL);
    old_calls = 0;
    const SignalStop outer{SIGUSR1};
    const SignalStop stop{SIGUSR1};
    const auto child = in_child([&](const Parent& parent) {
      leave_no_core();
      for (int calls = 1; calls <= 2; ++calls) {
        raise(SIGUSR1);
        wait_until([&] { return old_calls == calls; });  // ThreadSanitizer puts a signal in a signal off
        parent.tell("called ");
      }
    });
    CHECK(child.end() == (handled ? "exited with 0" : "killed by signal " + std::to_string(SIGUSR1)));
    CHECK(child.told == (handled ? "called called " : ""));
    CHECK(stop.signal() == 0);
    CHECK(outer.signal() == 0);
    // A word in the pipe would have been read before this one.
    raise(SIGUSR1);
    wait_for_stop(stop);
    CHECK(stop.signal() == SIGUSR1);
    CHECK_FALSE(outer.token().stop_requested());
  }
}

TEST_CASE("E3 a SignalStop is destroyed in a forked child without harm") {
  const Watchdog watchdog;
  const OldHandler old(SIGUSR1);
  for (const bool outer_first : {false, true}) {
    auto outer = std::make_unique<SignalStop>(std::initializer_list<int>{SIGUSR1});
    auto inner = std::make_unique<SignalStop>(std::initializer_list<int>{SIGUSR1});
    const auto child = in_child([&](const Parent& parent) {
      const auto before = descriptors();
      (outer_first ? outer : inner).reset();
      (outer_first ? inner : outer).reset();
      parent.tell(calls_back(SIGUSR1) && descriptors() + 4 == before ? "as before" : "not as before");
    });
    CHECK(child.end() == "exited with 0");
    CHECK(child.told == "as before");
    raise(SIGUSR1);
    wait_for_stop(*inner);
    CHECK(outer->signal() == 0);
  }
}

TEST_CASE("E3 a SignalStop is destroyed while a forked child lives on") {
  const Watchdog watchdog;
  std::array<int, 2> ends{};
  REQUIRE(pipe(ends.data()) == 0);
  auto stop = std::make_unique<SignalStop>(std::initializer_list<int>{SIGUSR1});
  const pid_t child = fork();
  if (child == 0) {
    char word = 0;
    close(ends[1]);
    _exit(read(ends[0], &word, 1) == 0 ? 0 : 1);
  }
  stop.reset();  // does not wait for the child, which has its pipe
  close(ends[0]);
  close(ends[1]);
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}

TEST_CASE("E3 a forked child makes SignalStops of its own") {
  if (!support::children_may_start_threads || !support::may_fork_while_threads_run) return;
  const OldHandler old(SIGUSR1);
  const Disposition old2(SIGUSR2, count_call);
  auto inherited = std::make_unique<SignalStop>(std::initializer_list<int>{SIGUSR1, SIGUSR2});
  const auto child = in_child([&](const Parent& parent) {
    {
      const SignalStop stop{SIGUSR1};
      inherited.reset();
      raise(SIGUSR1);
      wait_for_stop(stop);
      if (old_calls != 0) parent.tell("not the child's");
      raise(SIGUSR1);
      if (old_calls != 1) parent.tell("not the old one");
      const auto grandchild = in_child([&](const Parent&) {
        const SignalStop again{SIGUSR1, SIGUSR2};
        raise(SIGUSR2);
        wait_for_stop(again);
      });
      parent.tell(grandchild.end() + "; ");
    }
    if (!calls_back(SIGUSR1) || !calls_back(SIGUSR2)) parent.tell("not as before");
  });
  CHECK(child.end() == "exited with 0");
  CHECK(child.told == "exited with 0; ");
  CHECK(inherited->signal() == 0);
}

TEST_CASE("E3 a fork amid signals and SignalStops of other threads leaves a child that can have its own") {
  if (!support::may_fork_while_threads_run) return;
  const Watchdog watchdog;
  const OldHandler old(SIGUSR1);
  std::atomic<bool> done{false};
  std::vector<std::jthread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      while (!done) {
        const SignalStop stop{SIGUSR1};
        std::this_thread::yield();
      }
    });
    threads.emplace_back([&] {
      while (!done) {
        raise(SIGUSR1);
        std::this_thread::yield();
      }
    });
  }
  int good = 0;
  constexpr int children = 30;
  for (int i = 0; i < children; ++i) {
    const auto child = in_child([&](const Parent& parent) {
      {
        const SignalStop stop{SIGUSR1};
        raise(SIGUSR1);
        wait_for_stop(stop);
        old_calls = 0;
        raise(SIGUSR1);
        if (old_calls != 1) parent.tell("not the old one");
      }
      if (!calls_back(SIGUSR1)) parent.tell("not as before");
    });
    if (child.end() == "exited with 0" && child.told.empty()) ++good;
  }
  done = true;
  threads.clear();
  CHECK(good == children);
  CHECK(calls_back(SIGUSR1));
}

// What cannot be -------------------------------------------------------------------------------------------------

TEST_CASE("E3 SignalStop names signals that it cannot catch") {
  CHECK(message_of({}) == "SignalStop: there must be at least one signal");
  CHECK(message_of({SIGKILL}).starts_with("SignalStop: signal 9"));
  CHECK(message_of({SIGKILL}).ends_with(" cannot be caught"));
  CHECK(message_of({SIGSTOP}).ends_with(" cannot be caught"));
  CHECK(message_of({0}) == "SignalStop: 0 is not a signal");
  CHECK(message_of({-1}) == "SignalStop: -1 is not a signal");
  CHECK(message_of({NSIG}) == "SignalStop: " + std::to_string(NSIG) + " is not a signal");
  CHECK(message_of({1000000}) == "SignalStop: 1000000 is not a signal");
#if defined(__GLIBC__)
  CHECK(message_of({32}) == "SignalStop: 32 is not a signal");  // glibc's own
  CHECK(message_of({SIGKILL}) == "SignalStop: signal 9 (Killed) cannot be caught");
#endif
}

TEST_CASE("E3 a SignalStop that cannot be made changes nothing") {
  const OldHandler old(SIGUSR1);
  const auto descriptors_before = descriptors();
  const auto threads_before = threads();
  SECTION("bad signals") {
    CHECK_THROWS_AS((SignalStop{SIGUSR1, SIGKILL}), std::invalid_argument);
    CHECK_THROWS_AS((SignalStop{SIGUSR1, 0}), std::invalid_argument);
  }
#if !defined(PYARALLEL_TEST_ADDRESS_SANITIZER)  // with it comes another sanitizer that needs descriptors itself
  SECTION("no descriptors") {
    rlimit before{};
    getrlimit(RLIMIT_NOFILE, &before);
    rlimit none = before;
    none.rlim_cur = 3;
    setrlimit(RLIMIT_NOFILE, &none);
    CHECK_THROWS_AS(SignalStop{SIGUSR1}, std::system_error);
    setrlimit(RLIMIT_NOFILE, &before);
  }
#endif
  CHECK(calls_back(SIGUSR1));
  CHECK(descriptors() == descriptors_before);
  CHECK(threads() == threads_before);
}

// With calls -----------------------------------------------------------------------------------------------------

TEST_CASE("E3 a signal cancels a call that watches a SignalStop") {
  const Watchdog watchdog;
  const std::vector<int> items = support::numbers(100);
  for (const Executor executor : {Executor::thread, Executor::sequential}) {
    const SignalStop stop{SIGINT, SIGTERM};
    const auto result = parallel_map(
        [](int i, const Task& task) {
          if (i == 1) raise(SIGTERM);
          if (i >= 1) support::wait_for_stop(task);
          return i;
        },
        items, {.workers = 2, .executor = runtime(executor), .batch = Batch{.chunk = 1}, .stop = stop.token()});
    CHECK(result.status() == RunStatus::cancelled);
    CHECK(stop.signal() == SIGTERM);
    CHECK(result.item_results()[1].ok());  // it was running, and ended
  }
}

// P4: with forked workers ----------------------------------------------------------------------------------------

TEST_CASE("P4 a signal to the whole process group cancels a call and crashes no worker") {
  if (!support::may_fork_while_threads_run) return;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    for (const int workers : {1, 3}) {
      CAPTURE(signal, workers);
      const auto child = in_child([&](const Parent& parent) {
        setpgid(0, 0);
        const support::Shared<std::atomic<int>> running;
        const std::vector<int> items = support::numbers(20);
        const SignalStop stop{SIGINT, SIGTERM, SIGHUP};
        std::jthread shooter([&] {
          wait_until([&] { return *running == workers; });
          kill(0, signal);
        });
        const auto result = parallel_map(
            [&](int i) {
              ++*running;
              support::hang();
              return i;
            },
            items, {.workers = static_cast<std::size_t>(workers), .executor = Executor::process, .stop = stop.token()});
        if (result.status() != RunStatus::cancelled) parent.tell("not cancelled; ");
        for (const Failure& failure : result.failures()) {
          if (!failure.error.is<Cancelled>()) parent.tell(failure.error.type_name() + "; ");
        }
        parent.tell(std::to_string(result.failures().size()) + " items, signal " + std::to_string(stop.signal()));
      });
      CHECK(child.end() == "exited with 0");
      CHECK(child.told == "20 items, signal " + std::to_string(signal));
    }
  }
}

TEST_CASE("P4 items that finish in spite of a signal to the whole process group keep their values") {
  if (!support::may_fork_while_threads_run) return;
  const auto child = in_child([&](const Parent& parent) {
    setpgid(0, 0);
    const std::vector<int> items = support::numbers(6);
    const SignalStop stop{SIGTERM};  // which nobody looks at
    const auto result = parallel_map(
        [&](int i) {
          if (i == 2) kill(0, SIGTERM);
          return i * i;
        },
        items, {.workers = 2, .executor = Executor::process});
    wait_for_stop(stop);
    parent.tell(result.ok() && result.values()[5] == 25 ? "all there" : "not all there");
  });
  CHECK(child.end() == "exited with 0");
  CHECK(child.told == "all there");
}

TEST_CASE("P4 the second signal to the whole process group ends the program and its workers") {
  if (!support::may_fork_while_threads_run) return;
  // It returns when all who inherited the pipe are gone: the parent and its workers.
  const auto child = in_child([&](const Parent& parent) {
    setpgid(0, 0);
    handle(SIGTERM, SIG_DFL);
    const support::Shared<std::atomic<int>> running;
    const std::vector<int> items = support::numbers(2);
    const SignalStop stop{SIGTERM};  // which nobody looks at
    std::jthread shooter([&] {
      wait_until([&] { return *running == 2; });
      kill(0, SIGTERM);
      wait_for_stop(stop);
      parent.tell("asked to stop");
      kill(0, SIGTERM);
    });
    parallel_map(
        [&](int) {
          ++*running;
          support::hang();
        },
        items, {.workers = 2, .executor = Executor::process});
  });
  CHECK(child.end() == "killed by signal " + std::to_string(SIGTERM));
  CHECK(child.told == "asked to stop");
}

TEST_CASE("P4 workers ignore the signals of a SignalStop and no others") {
  if (!support::may_fork_while_threads_run) return;
  const Watchdog watchdog;
  const OldHandler old(SIGUSR1);
  const Disposition old2(SIGUSR2, count_call);
  const Disposition old3(SIGHUP, count_call);
  const SignalStop stop{SIGUSR1, SIGUSR2};
  const SignalStop inner{SIGUSR1};
  raise(SIGUSR1);  // the outer one still waits for it
  const std::vector<int> items = support::numbers(2);
  const auto result = parallel_map(
      [](int) {
        const auto text_of = [](int signal) {
          const auto handler = disposition(signal).sa_handler;
          return std::string(handler == SIG_IGN ? "ignored " : handler == SIG_DFL ? "default " : "handled ");
        };
        return text_of(SIGUSR1) + text_of(SIGUSR2) + text_of(SIGHUP);
      },
      items, {.workers = 2, .executor = Executor::process});
  CHECK(result.values()[0] == "ignored ignored default ");
  CHECK(result.values()[1] == "ignored ignored default ");
}

TEST_CASE("P4 a worker makes a SignalStop of its own") {
  if (!support::may_fork_while_threads_run) return;
  const Watchdog watchdog;
  const SignalStop stop{SIGUSR1};
  const std::vector<int> items = support::numbers(4);
  const auto result = parallel_map(
      [](int i) {
        const SignalStop own{SIGUSR1};
        raise(SIGUSR1);
        wait_for_stop(own);
        return own.signal() + i;
      },
      items, {.workers = 2, .executor = Executor::process});
  CHECK(support::list_of(result) == std::vector<int>{SIGUSR1, SIGUSR1 + 1, SIGUSR1 + 2, SIGUSR1 + 3});
  CHECK(stop.signal() == 0);
}
