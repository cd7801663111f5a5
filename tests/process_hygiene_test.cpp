// P4 and C7 with forked workers: what they must not do to the rest of the program, whatever that does to them, and
// that nothing is left of them.
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <list>
#include <map>
#include <optional>
#include <pyarallel.hpp>
#include <ranges>
#include <set>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
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
using support::die_by;
using support::in_child;
using support::is_gone;
using support::Meanwhile;
using support::Parent;
using support::resident_memory;
using support::Shared;
using support::SinglePass;
using support::state_of_process;
using support::wait_until;
using support::Watchdog;

namespace {

/// fn(0) ... fn(count - 1) in forked workers, of items that are pulled, or not.
template <class F>
auto map_ints(bool pulled, F fn, int count, MapOptions<int, result_t<F, std::vector<int>>> options = {}) {
  const auto numbers = std::views::iota(0, count);
  if (!options.workers) options.workers = 2;
  options.executor = Executor::process;
  if (pulled) return parallel_map(fn, std::list<int>(numbers.begin(), numbers.end()), options);
  return parallel_map(fn, std::vector<int>(numbers.begin(), numbers.end()), options);
}

/// "signal 9", "exit code 3", or the type of what else it is.
std::string fate(const Error& error) {
  const auto* crash = error.get_if<WorkerCrashed>();
  if (crash == nullptr) return error.type_name();
  if (crash->signal() != 0) return "signal " + std::to_string(crash->signal());
  return crash->exit_code() == -1 ? "unknown end" : "exit code " + std::to_string(crash->exit_code());
}

/// "3 signal 9, 5 exit code 1"
template <class R>
std::string fates(const MapResult<R>& result) {
  std::string text = result.complete() ? "" : "truncated, ";
  for (const Failure& failure : result.failures())
    text += std::to_string(failure.index) + " " + fate(failure.error) + ", ";
  return text.substr(0, text.size() - std::min<std::size_t>(2, text.size()));
}

/// What each descriptor of this process is.
std::map<int, std::string> descriptors() {
  std::map<int, std::string> found;
  DIR* const folder = opendir("/proc/self/fd");
  if (folder == nullptr) return found;
  while (const dirent* entry = readdir(folder)) {
    const int number = std::atoi(entry->d_name);
    std::array<char, 256> target{};
    const auto length = readlinkat(dirfd(folder), entry->d_name, target.data(), target.size());
    if (length > 0 && number != dirfd(folder))
      found[number] = std::string(target.data(), static_cast<std::size_t>(length));
  }
  closedir(folder);
  return found;
}

bool has_children() {
  siginfo_t info{};
  return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 || errno != ECHILD;
}

/// All that a call could leave behind in this process, to be compared with what is there after the call.
std::string leavings() {
  std::string text = has_children() ? "children; " : "";
  for (const auto& [number, target] : descriptors()) text += std::to_string(number) + ": " + target + "; ";
  std::ifstream maps("/proc/self/maps");
  int shared_mappings = 0;
  for (std::string line; std::getline(maps, line);) shared_mappings += line.find(" rw-s ") != std::string::npos;
  return text + std::to_string(shared_mappings) + " shared mappings";
}

/// The names of shared memory on this machine.
std::set<std::string> shared_names() {
  std::set<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm", error)) names.insert(entry.path().string());
  return names;
}

/// What the library makes once in a process, and keeps, is there.
void warm_up() {
  map_ints(
      false, [](int i) { return i; }, 2);
  map_ints(
      true, [](int i) { return i; }, 2);
}

/// A file for what a test writes.
class TemporaryFile {
 public:
  TemporaryFile() : path_((std::filesystem::temp_directory_path() / "pyarallel_test_XXXXXX").string()) {
    number_ = mkstemp(path_.data());
    if (number_ < 0) throw std::system_error(errno, std::generic_category(), "mkstemp");
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    close(number_);
    unlink(path_.c_str());
  }
  int number() const { return number_; }
  const std::string& path() const { return path_; }
  /// How often each line is in it.
  std::map<std::string, int> lines() const {
    std::ifstream file(path_);
    std::map<std::string, int> found;
    for (std::string line; std::getline(file, line);) ++found[line];
    return found;
  }

 private:
  std::string path_;
  int number_;
};

/// Written by signal handlers, in whichever process they run.
struct HandlerRuns {
  std::atomic<int> in_owner{0};
  std::atomic<int> elsewhere{0};
  pid_t owner = getpid();
};
HandlerRuns* handler_runs = nullptr;

void count_signal(int) {
  const int error = errno;
  ++(getpid() == handler_runs->owner ? handler_runs->in_owner : handler_runs->elsewhere);
  errno = error;
}

void handle(int signal, void (*handler)(int), int flags = 0) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigaction(signal, &action, nullptr);
}

/// Everything that a program says about signals.
struct SignalSettings {
  SignalSettings() {
    for (int signal = 1; signal < NSIG; ++signal) {
      struct sigaction action {};
      if (sigaction(signal, nullptr, &action) != 0) continue;
      sigset_t mask = action.sa_mask;
      text +=
          std::to_string(reinterpret_cast<std::uintptr_t>(action.sa_handler)) + " " + std::to_string(action.sa_flags);
      for (int other = 1; other < NSIG; ++other) text += sigismember(&mask, other) == 1 ? '1' : '0';
      text += '\n';
    }
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    for (int signal = 1; signal < NSIG; ++signal) text += sigismember(&mask, signal) == 1 ? '1' : '0';
  }
  std::string text;
  bool operator==(const SignalSettings&) const = default;
};

/// For handlers that run at exit.
const Parent* told_at_exit = nullptr;
void tell_at_exit() { told_at_exit->tell("atexit "); }
struct TellsWhenDestroyed {
  ~TellsWhenDestroyed() { told_at_exit->tell("destroyed "); }
};

}  // namespace

// P4: workers never outlive their parent ------------------------------------------------------------------------

TEST_CASE("P4 workers die with their parent whether they run or are idle and however it dies") {
  struct Death {
    const char* end;
    std::function<void()> die;
  };
  std::vector<Death> deaths{{"killed by signal 9", [] { kill(getpid(), SIGKILL); }},
                            {"killed by signal 15", [] { raise(SIGTERM); }},
                            {"killed by signal 6", [] { die_by(SIGABRT); }},
                            {"exited with 5", [] { _exit(5); }},
                            {"exited with 6", [] { std::quick_exit(6); }}};
  if (support::may_fork_while_threads_run) deaths.push_back({"exited with 7", [] { std::exit(7); }});
  for (const Death& death : deaths) {
    CAPTURE(death.end);
    struct Board {
      std::atomic<pid_t> idle{0};
      std::atomic<pid_t> running{0};
    };
    const Shared<Board> board;
    // It returns when all who inherited the pipe are gone: the parent and its workers.
    const auto child = in_child([&](const Parent&) {
      SinglePass source{3, [](int i) { return i; }};
      // The third item is never read: whoever ran the first has nothing to do.
      source.on_read = [&](int i) {
        if (i < 2) return;
        wait_until([&] { return board->idle != 0 && board->running != 0 && state_of_process(board->idle) == 'S'; });
        death.die();
      };
      parallel_map(
          [&](int i) {
            if (i == 0) {
              wait_until([&] { return board->running != 0; });
              board->idle = getpid();
              return;
            }
            board->running = getpid();
            while (true) pause();
          },
          source, {.workers = 2, .executor = Executor::process, .batch = Batch{.size = 3}});
    });
    CHECK(child.end() == death.end);
    CHECK(board->idle != board->running);
    CHECK_NOTHROW(wait_until([&] { return is_gone(board->idle); }));
    CHECK_NOTHROW(wait_until([&] { return is_gone(board->running); }));
  }
}

TEST_CASE("P4 workers of workers die with the parent of all") {
  const Shared<std::array<std::atomic<pid_t>, 8>> leaves;
  const auto child = in_child([&](const Parent&) {
    const auto run_for_ever = [&](int place) {
      (*leaves)[static_cast<std::size_t>(place)] = getpid();
      while (true) pause();
    };
    const auto inner = [&](int i) {
      parallel_map([&](int j) { run_for_ever(4 * i + j); }, std::views::iota(0, 4),
                   {.workers = 4, .executor = Executor::process, .batch = Batch{.chunk = 1}});
    };
    SinglePass source{3, [](int i) { return i; }};
    source.on_read = [&](int i) {
      if (i < 2) return;
      wait_until([&] { return std::ranges::all_of(*leaves, [](const auto& pid) { return pid != 0; }); });
      kill(getpid(), SIGKILL);
    };
    parallel_map(inner, source, {.workers = 2, .executor = Executor::process, .batch = Batch{.size = 3}});
  });
  CHECK(child.end() == "killed by signal 9");
  for (const auto& pid : *leaves) CHECK_NOTHROW(wait_until([&] { return is_gone(pid); }));
}

// P4: what belongs to the parent stays the parent's ---------------------------------------------------------------

TEST_CASE("P4 workers run none of the program's exit handlers and static destructors even when fn calls exit") {
  for (const bool pulled : {false, true}) {
    const auto child = in_child([&](const Parent& parent) {
      told_at_exit = &parent;
      static const TellsWhenDestroyed destroyed_at_exit;
      std::atexit(tell_at_exit);
      const auto result = map_ints(
          pulled,
          [](int i) {
            if (i == 2) std::exit(3);
            if (i == 4) _exit(4);
            if (i == 6) std::quick_exit(5);
            return i;
          },
          10);
      parent.tell(fates(result));
    });
    CHECK(child.end() == "exited with 0");
    CHECK(child.told == "2 exit code 3, 4 exit code 4, 6 exit code 5");
  }
}

TEST_CASE("P4 text of the program and of its workers is printed exactly once") {
  for (const bool synchronised : {true, false}) {
    for (const bool pulled : {false, true}) {
      CAPTURE(synchronised, pulled);
      const TemporaryFile output;
      const TemporaryFile errors;
      const TemporaryFile file_text;
      const TemporaryFile stream_text;
      const auto child = in_child([&](const Parent& parent) {
        dup2(output.number(), STDOUT_FILENO);
        dup2(errors.number(), STDERR_FILENO);
        std::ios::sync_with_stdio(synchronised);
        std::setvbuf(stdout, nullptr, _IOFBF, 1 << 16);
        std::FILE* const file = std::fopen(file_text.path().c_str(), "w");
        std::ofstream stream(stream_text.path());
        // All of it stays in buffers of the parent.
        std::printf("printf before\n");
        std::cout << "cout before\n";
        std::clog << "clog before\n";
        std::fprintf(file, "file before\n");
        stream << "stream before\n";
        const auto result =
            map_ints(pulled,
                     [](int i) {
                       std::printf("printf %d\n", i);
                       std::cout << "cout " + std::to_string(i) + "\n";
                       std::clog << "clog " + std::to_string(i) + "\n";  // at once, for it may be unbuffered
                       if (i == 3) std::exit(3);
                       if (i == 5) throw std::runtime_error("thrown");
                     },
                     10, {.max_tasks_per_worker = pulled ? std::optional<std::size_t>{4} : std::nullopt});
        std::printf("printf after\n");
        std::cout << "cout after\n";
        std::clog << "clog after\n";
        std::cout.flush();
        std::clog.flush();
        stream.close();
        std::fflush(nullptr);
        parent.tell(fates(result));
      });
      CHECK(child.end() == "exited with 0");
      CHECK(child.told == "3 exit code 3, 5 std::runtime_error");
      const auto check = [](const TemporaryFile& text, const std::vector<std::string>& origins) {
        const auto lines = text.lines();
        CHECK(lines.size() == origins.size() * 12);
        for (const std::string& origin : origins) {
          for (const char* place : {"before", "after", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}) {
            CAPTURE(origin, place);
            const auto line = lines.find(origin + " " + place);
            CHECK((line == lines.end() ? 0 : line->second) == 1);
          }
        }
      };
      check(output, {"printf", "cout"});
      check(errors, {"clog"});
      CHECK(file_text.lines() == std::map<std::string, int>{{"file before", 1}});
      CHECK(stream_text.lines() == std::map<std::string, int>{{"stream before", 1}});
    }
  }
}

TEST_CASE("P4 a signal handler of the program does not run in workers") {
  for (const bool pulled : {false, true}) {
    const Shared<HandlerRuns> runs;
    const auto child = in_child([&](const Parent& parent) {
      handler_runs = &*runs;
      runs->owner = getpid();
      handle(SIGUSR1, count_signal);
      handle(SIGTERM, count_signal);
      raise(SIGUSR1);  // here it does
      const auto result = map_ints(
          pulled,
          [](int i) {
            if (i == 2) raise(SIGUSR1);
            if (i == 4) raise(SIGTERM);
            return i;
          },
          8);
      parent.tell(fates(result));
    });
    CHECK(child.end() == "exited with 0");
    CHECK(child.told == "2 signal " + std::to_string(SIGUSR1) + ", 4 signal " + std::to_string(SIGTERM));
    CHECK(runs->in_owner == 1);
    CHECK(runs->elsewhere == 0);
  }
}

TEST_CASE("P4 a signal that comes all the time runs no handler of the program in workers that begin") {
  const Shared<HandlerRuns> runs;
  const auto child = in_child([&](const Parent& parent) {
    handler_runs = &*runs;
    runs->owner = getpid();
    setpgid(0, 0);
    handle(SIGWINCH, count_signal);  // ignored where nobody handles it
    std::string wrong;
    const pid_t group = getpid();
    const pid_t sender = fork();
    if (sender == 0) {
      handle(SIGWINCH, SIG_IGN);
      while (getppid() == group) kill(0, SIGWINCH);
      _exit(0);
    }
    for (int round = 0; round < 20; ++round) {
      const auto result = map_ints(
          round % 2 == 0, [](int i) { return i == 3 ? (_exit(1), 0) : i; }, 10);
      if (fates(result) != "3 exit code 1") wrong = fates(result);
    }
    kill(sender, SIGKILL);
    waitpid(sender, nullptr, 0);
    parent.tell(wrong.empty() ? "right" : wrong);
  });
  CHECK(child.end() == "exited with 0");
  CHECK(child.told == "right");
  CHECK(runs->in_owner > 0);
  CHECK(runs->elsewhere == 0);
}

TEST_CASE("P4 signal masks and dispositions of the program stay as they are during and after a call") {
  const auto child = in_child([&](const Parent& parent) {
    handle(SIGUSR1, count_signal, SA_RESTART | SA_NODEFER);
    handle(SIGINT, count_signal);
    handle(SIGPIPE, SIG_IGN);
    handle(SIGCHLD, count_signal, SA_NOCLDSTOP);
    const Shared<HandlerRuns> runs;
    handler_runs = &*runs;
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    sigaddset(&blocked, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
    const SignalSettings before;
    for (const bool pulled : {false, true}) {
      const auto result = map_ints(pulled, [](int i) { return i == 3 ? (_exit(1), 0) : i; }, 10,
                                   {.on_progress = [&](std::size_t, std::size_t) {
                                     if (before != SignalSettings{}) parent.tell("changed during a call; ");
                                   }});
      if (before != SignalSettings{}) parent.tell("changed after a call; ");
      try {
        map_ints(pulled, [](int) {}, 10, {.on_progress = [](std::size_t, std::size_t) { throw 1; }});
      } catch (int) {
        if (before != SignalSettings{}) parent.tell("changed after an exception; ");
      }
    }
    parent.tell("done");
  });
  CHECK(child.end() == "exited with 0");
  CHECK(child.told == "done");
}

TEST_CASE("P4 workers block no signals and ignore what the program ignores and the terminal's Ctrl-C") {
  const auto child = in_child([&](const Parent& parent) {
    handle(SIGPIPE, SIG_IGN);
    handle(SIGUSR1, count_signal);
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    const auto result = map_ints(
        false,
        [](int) {
          std::string text;
          sigset_t mask;
          pthread_sigmask(SIG_SETMASK, nullptr, &mask);
          for (int signal = 1; signal < NSIG; ++signal) {
            if (sigismember(&mask, signal) == 1) text += std::to_string(signal) + " blocked; ";
          }
          const auto handler_of = [](int signal) {
            struct sigaction action {};
            sigaction(signal, nullptr, &action);
            return action.sa_handler;
          };
          if (handler_of(SIGPIPE) != SIG_IGN) text += "SIGPIPE not ignored; ";
          if (handler_of(SIGINT) != SIG_IGN) text += "SIGINT not ignored; ";
          if (handler_of(SIGUSR1) != SIG_DFL) text += "SIGUSR1 handled; ";
          if (handler_of(SIGTERM) != SIG_DFL) text += "SIGTERM not as it was; ";
          return text;
        },
        2);
    parent.tell(result[0] + result[1] + "done");
  });
  CHECK(child.end() == "exited with 0");
  CHECK(child.told == "done");
}

TEST_CASE("P4 Ctrl-C reaches the program and kills no worker") {
  for (const bool handled : {true, false}) {
    CAPTURE(handled);
    const Shared<HandlerRuns> runs;
    const auto child = in_child([&](const Parent& parent) {
      handler_runs = &*runs;
      runs->owner = getpid();
      setpgid(0, 0);
      handle(SIGINT, handled ? count_signal : SIG_IGN);
      const auto result = map_ints(true,
                                   [&](int i) {
                                     if (i == 3) {
                                       kill(0, SIGINT);  // as the terminal does: to all processes of the group
                                       if (handled) wait_until([&] { return runs->in_owner > 0; });
                                     }
                                     return i;
                                   },
                                   20, {.workers = 3});
      parent.tell(result.ok() ? "ok" : fates(result));
    });
    CHECK(child.end() == "exited with 0");
    CHECK(child.told == "ok");
    CHECK(runs->in_owner == (handled ? 1 : 0));
    CHECK(runs->elsewhere == 0);
  }
}

TEST_CASE("P4 a program may ignore SIGCHLD") {
  for (const bool pulled : {false, true}) {
    const auto child = in_child([&](const Parent& parent) {
      handle(SIGCHLD, SIG_IGN);
      const auto result = map_ints(pulled,
                                   [](int i) {
                                     if (i % 10 == 2) _exit(1);
                                     if (i % 10 == 4) die_by(SIGSEGV);
                                     if (i == 15) {
                                       while (true) pause();
                                     }
                                     return i;
                                   },
                                   20, {.task_timeout = 300ms});
      parent.tell(fates(result));
    });
    CHECK(child.end() == "exited with 0");
    CHECK(child.told == "2 unknown end, 4 unknown end, 12 unknown end, 14 unknown end, 15 pyarallel::TaskTimeout");
  }
}

TEST_CASE("P4 a program may reap all children in a handler of SIGCHLD") {
  for (const bool pulled : {false, true}) {
    const auto child = in_child([&](const Parent& parent) {
      handle(SIGCHLD, [](int) {
        const int error = errno;
        while (waitpid(-1, nullptr, WNOHANG) > 0) {
        }
        errno = error;
      });
      for (int round = 0; round < 20; ++round) {
        const auto result = map_ints(
            pulled,
            [](int i) {
              if (i == 2) _exit(1);
              return i;
            },
            20);
        const std::string text = fates(result);
        if (text != "2 unknown end" && text != "2 exit code 1") parent.tell(text + "; ");
      }
      parent.tell("done");
    });
    CHECK(child.end() == "exited with 0");
    CHECK(child.told == "done");
  }
}

TEST_CASE("P4 other children of the program are neither reaped nor killed") {
  const Watchdog watchdog;
  for (const bool pulled : {false, true}) {
    std::array<int, 2> ends{};
    REQUIRE(pipe(ends.data()) == 0);
    const pid_t other = fork();
    if (other == 0) {
      close(ends[1]);
      char byte = 0;
      _exit(read(ends[0], &byte, 1) == 0 ? 42 : 43);
    }
    close(ends[0]);
    const pid_t dead = fork();
    if (dead == 0) _exit(41);
    const auto result = map_ints(pulled, [](int i) { return i == 5 ? (_exit(1), 0) : i; }, 20,
                                 {.on_progress = [&](std::size_t done, std::size_t) {
                                   // It dies in the middle of the run. (Workers hold the other copies of its pipe until
                                   // they leave.)
                                   if (done == 3) close(ends[1]);
                                 }});
    CHECK(fates(result) == "5 exit code 1");
    int status = 0;
    CHECK(waitpid(other, &status, 0) == other);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 42);
    CHECK(waitpid(dead, &status, 0) == dead);
    CHECK(WEXITSTATUS(status) == 41);
  }
}

TEST_CASE("P4 signals that interrupt the program all the time disturb nothing") {
  for (const bool pulled : {false, true}) {
    const Shared<HandlerRuns> runs;
    const auto child = in_child([&](const Parent& parent) {
      handler_runs = &*runs;
      runs->owner = getpid();
      handle(SIGALRM, count_signal);  // without SA_RESTART: whatever waits returns EINTR
      handle(SIGUSR1, count_signal);
      const itimerval often{{0, 300}, {0, 300}};
      setitimer(ITIMER_REAL, &often, nullptr);
      std::atomic<bool> done{false};
      const auto target = pthread_self();
      const auto shoot = [&] {
        while (!done && support::may_fork_while_threads_run) {
          pthread_kill(target, SIGUSR1);
          std::this_thread::sleep_for(200us);
        }
      };
      std::optional<Meanwhile> shooter;
      if (support::may_fork_while_threads_run) shooter.emplace(shoot);
      for (int round = 0; round < 15; ++round) {
        const auto result = map_ints(
            pulled,
            [](int i) {
              if (i == 3) _exit(1);
              if (i == 7) std::this_thread::sleep_for(3ms);
              return std::string(static_cast<std::size_t>(i % 5 == 4 ? 9'000'000 : 100), static_cast<char>('a' + i));
            },
            10);
        if (fates(result) != "3 exit code 1") parent.tell(fates(result) + "; ");
        for (const auto& success : result.successes()) {
          const auto letter = static_cast<char>('a' + success.index);
          if (success.value != std::string(success.value.size(), letter)) parent.tell("damaged; ");
        }
      }
      done = true;
      if (shooter) shooter->join();
      const itimerval never{};
      setitimer(ITIMER_REAL, &never, nullptr);
      parent.tell("done");
    });
    CHECK(child.end() == "exited with 0");
    CHECK(child.told == "done");
    CHECK(runs->in_owner > 10);
    CHECK(runs->elsewhere == 0);
  }
}

// P4: descriptors --------------------------------------------------------------------------------------------------

TEST_CASE("P4 workers do not inherit the descriptors of their siblings") {
  const Watchdog watchdog;
  warm_up();
  for (const bool pulled : {false, true}) {
    const auto before = descriptors();
    const Shared<std::atomic<int>> here;
    const auto result = map_ints(pulled,
                                 [&](int) {
                                   ++*here;
                                   wait_until([&] { return *here >= 4; });  // four workers, one item each
                                   std::string text;
                                   for (const auto& [number, target] : descriptors()) {
                                     if (!before.contains(number) && target.find("eventfd") == std::string::npos)
                                       text += target + " ";
                                   }
                                   return text;
                                 },
                                 4, {.workers = 4, .batch = Batch{.chunk = 1}});
    REQUIRE(result.ok());
    for (const std::string& text : result) CHECK(text.empty());
  }
}

TEST_CASE("P4 programs that fn or a callback starts inherit no descriptor of the library") {
  const Watchdog watchdog;
  warm_up();
  const auto before = descriptors();
  const auto not_closed_on_exec = [&] {
    std::string text;
    for (const auto& [number, target] : descriptors()) {
      if (!before.contains(number) && (fcntl(number, F_GETFD) & FD_CLOEXEC) == 0) text += target + " ";
    }
    return text;
  };
  for (const bool pulled : {false, true}) {
    std::string in_callback;
    const auto result =
        map_ints(pulled, [&](int) { return not_closed_on_exec(); }, 10,
                 {.on_progress = [&](std::size_t, std::size_t) { in_callback += not_closed_on_exec(); }});
    REQUIRE(result.ok());
    for (const std::string& text : result) CHECK(text.empty());
    CHECK(in_callback.empty());
  }
}

TEST_CASE("P4 a program that has one descriptor left can run and one that has none is told") {
  // UBSan looks at objects through a pipe; without descriptors it takes them for broken ones.
  if (!support::may_fork_while_threads_run) return;
  for (const bool pulled : {false, true}) {
    CAPTURE(pulled);
    const auto child = in_child([&](const Parent& parent) {
      warm_up();
      const int next = dup(STDIN_FILENO);
      close(next);
      rlimit limit{};
      getrlimit(RLIMIT_NOFILE, &limit);
      const auto run = [&](int more) {
        limit.rlim_cur = static_cast<rlim_t>(next + more);
        setrlimit(RLIMIT_NOFILE, &limit);
        const auto result = map_ints(pulled,
                                     [](int i) {
                                       if (i == 3) _exit(1);
                                       if (i == 5) die_by(SIGSEGV);
                                       if (i == 8) {
                                         while (true) pause();
                                       }
                                       return std::vector<char>(100'000, 'x');
                                     },
                                     20, {.workers = 3, .task_timeout = 300ms});
        parent.tell(fates(result) + "; ");
      };
      run(1);  // no descriptor of a process is to be had
      run(2);
      run(3);
      try {
        run(0);
      } catch (const std::system_error&) {
        parent.tell("refused");
      }
    });
    CHECK(child.end() == "exited with 0");
    const std::string right = "3 exit code 1, 5 signal 11, 8 pyarallel::TaskTimeout; ";
    CHECK(child.told == right + right + right + "refused");
  }
}

// C7: nothing is left behind -----------------------------------------------------------------------------------------

TEST_CASE("C7 a grandchild that outlives its worker and holds its descriptors does not hold up the call") {
  const Watchdog watchdog;
  for (const bool pulled : {false, true}) {
    for (const int way : {0, 1, 2}) {
      CAPTURE(pulled, way);
      const Shared<std::atomic<pid_t>> grandchild;
      const auto result = map_ints(
          pulled,
          [&](int i) {
            if (i != 2) return i;
            const pid_t pid = fork();
            if (pid == 0) {
              alarm(60);  // should the test not come to kill it
              while (true) pause();
            }
            *grandchild = pid;
            if (way == 1) _exit(3);
            if (way == 2) die_by(SIGKILL);
            return i;
          },
          10);
      const bool lives = !is_gone(*grandchild);
      kill(*grandchild, SIGKILL);
      CHECK(lives);
      CHECK(fates(result) == (way == 0 ? "" : way == 1 ? "2 exit code 3" : "2 signal 9"));
    }
  }
}

TEST_CASE("C7 however a call on processes ends it leaves no child and no descriptor and no memory") {
  const Watchdog watchdog;
  warm_up();
  const std::string before = leavings();
  REQUIRE_FALSE(has_children());
  const auto run_for_ever = [](int i) {
    if (i < 2) return std::string("quick");
    while (true) pause();
  };
  for (const bool pulled : {false, true}) {
    CAPTURE(pulled);
    CHECK(map_ints(
              pulled, [](int i) { return i; }, 100)
              .ok());
    CHECK(leavings() == before);
    CHECK(map_ints(
              pulled, [](int i) { return std::string(10'000'000, static_cast<char>(i)); }, 10)
              .ok());
    CHECK(leavings() == before);
    CHECK(fates(map_ints(
              pulled, [](int i) { return i == 7 ? (_exit(1), 0) : i; }, 10)) == "7 exit code 1");
    CHECK(leavings() == before);
    CHECK(map_ints(pulled, run_for_ever, 10, {.timeout = 50ms}).timed_out());
    CHECK(leavings() == before);
    CHECK_FALSE(map_ints(pulled, run_for_ever, 4, {.task_timeout = 50ms}).ok());
    CHECK(leavings() == before);
    std::stop_source stop;
    const auto stop_it = [&](std::size_t, std::size_t) { stop.request_stop(); };
    CHECK(map_ints(pulled, run_for_ever, 10, {.stop = stop.get_token(), .on_progress = stop_it}).cancelled());
    CHECK(leavings() == before);
    const auto fail = [](const auto&...) { throw std::logic_error("fail"); };
    const auto text_of = [](int i) { return std::to_string(i); };
    CHECK_THROWS_AS(map_ints(pulled, text_of, 100, {.on_result = fail}), std::logic_error);
    CHECK(leavings() == before);
    CHECK_THROWS_AS(map_ints(pulled, run_for_ever, 10, {.worker_init = fail}), std::logic_error);
    CHECK(leavings() == before);
    CHECK_THROWS_AS(map_ints(pulled, run_for_ever, 10, {.worker_init = [] { _exit(1); }}), WorkerCrashed);
    CHECK(leavings() == before);
    CHECK(map_ints(pulled, [](int) { throw std::runtime_error("fail"); }, 100, {.max_errors = 2}).aborted());
    CHECK(leavings() == before);
    CHECK(map_ints(pulled, [](int i) { return i; }, 20, {.max_tasks_per_worker = 2}).ok());
    CHECK(leavings() == before);
  }
  SinglePass source{10, [](int i) { return i; }};
  source.on_read = [](int i) {
    if (i == 2) throw std::logic_error("fail");
  };
  CHECK_THROWS_AS(parallel_map([](int i) { return i; }, source, {.workers = 2, .executor = Executor::process}),
                  std::logic_error);
  CHECK(leavings() == before);
}

TEST_CASE("C7 calls on processes leave no name of shared memory") {
  const Watchdog watchdog;
  const auto before = shared_names();
  for (const bool pulled : {false, true}) {
    CHECK(map_ints(
              pulled, [](int i) { return std::string(10'000'000, static_cast<char>(i)); }, 10)
              .ok());
    CHECK(fates(map_ints(
              pulled, [](int i) { return i == 7 ? (_exit(1), 0) : i; }, 10)) == "7 exit code 1");
  }
  // Other programs have names too, which come and go.
  wait_until([&] { return std::ranges::includes(before, shared_names()); });
}

TEST_CASE("C7 a stopped worker does not hold up the end of a call") {
  const Watchdog watchdog;
  for (const bool pulled : {false, true}) {
    const auto stop_itself = [](int i) {
      if (i == 1) raise(SIGSTOP);
      return i;
    };
    CHECK(map_ints(pulled, stop_itself, 4, {.timeout = 300ms}).timed_out());
    std::stop_source stop;
    const auto end_it = [&](std::size_t, std::size_t) { stop.request_stop(); };
    CHECK(map_ints(pulled, stop_itself, 4, {.stop = stop.get_token(), .on_progress = end_it}).cancelled());
    CHECK_FALSE(has_children());
  }
}

TEST_CASE("C7 thousands of crashes cost neither descriptors nor memory") {
  const Watchdog watchdog;
  static constexpr int count = 2000;
  for (const bool pulled : {false, true}) {
    CAPTURE(pulled);
    warm_up();
    const std::string before = leavings();
    std::map<std::size_t, std::pair<std::size_t, std::size_t>> seen;  // descriptors and memory
    const auto look = [&](std::size_t done, std::size_t) {
      if (done == 100 || done == count) seen[done] = {descriptors().size(), resident_memory()};
    };
    {
      const auto result = map_ints(pulled, [](int) { _exit(1); }, count, {.on_progress = look});
      CHECK(result.failures().size() == count);
    }
    CHECK(leavings() == before);
    // A few, for workers that are there at one moment and not at the other.
    CHECK(seen[count].first <= seen[100].first + 4);
    // What was freed a sanitizer keeps.
    if (support::may_fork_while_threads_run) CHECK(seen[count].second < seen[100].second + (std::size_t{4} << 20));
  }
}
