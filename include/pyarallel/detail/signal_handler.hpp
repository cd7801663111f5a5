// The signal handler of SignalStop, and who is told of which signal.
//
// Each signal has a list of listeners, the newest first. The handler tells the newest that has not been told yet. When
// none is left, it puts back what was there before them, so that the next signal is none of ours. Constructors and
// destructors change the list under a lock that the handler never takes; what makes that safe:
// - All that the handler reads is atomic or does not change while it is in the list, and all that it calls is
//   async-signal-safe (sigaction, getpid, write, raise).
// - A listener that was taken out lives until no handler runs that may have seen it.
// - Handler, constructors and destructors may all set the disposition at once. Each changes the list first, and looks
//   at the list again after it has set anything, so that whoever comes last leaves what the list says.
// - In a forked child the listeners of the parent count as told, and nothing waits for handlers or threads that were
//   left behind.
#pragma once

#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

namespace pyarallel::detail {

/// Where the handler leaves its word: the first signal, and a byte in a pipe for each.
struct SignalInbox {
  static_assert(std::atomic<int>::is_always_lock_free);

  std::atomic<int> first{0};
  int pipe = -1;  // does not block

  void put(int signal) noexcept {
    int none = 0;
    first.compare_exchange_strong(none, signal);
    // There is room: each listener is told once.
    const char word = 's';
    if (::write(pipe, &word, sizeof word) < 0) return;
  }
};

/// A wish to be told of one signal, once.
struct SignalListener {
  using Disposition = struct sigaction;

  SignalInbox* inbox;
  pid_t process;                     // a forked child finds it in its list too
  std::optional<Disposition> under;  // what our handler was installed over; nullopt: it was there already
  std::atomic<bool> told{false};
  std::atomic<SignalListener*> next{nullptr};  // older
  // Under the lock only:
  bool gone = false;  // nobody waits for it any more
  SignalListener* next_forgotten = nullptr;
};

/// All about one signal.
class CaughtSignal {
 public:
  /// 1 <= signal < NSIG.
  static CaughtSignal& of(int signal) noexcept;

  static bool is_ours(const struct sigaction& action) noexcept {
    return (action.sa_flags & SA_SIGINFO) == 0 && action.sa_handler == &handle;
  }

  /// From now on `inbox` is told of the signal, before those that were there already. std::system_error if there can
  /// be no handler.
  SignalListener* add(int signal, SignalInbox& inbox) {
    const pid_t process = ::getpid();
    auto listener = std::make_unique<SignalListener>();
    listener->inbox = &inbox;
    listener->process = process;
    const Lock lock{holder_};
    if (process_.load() != process) {
      running_.store(0);  // handlers that ran in the parent at the fork
      process_.store(process);
    }
    const struct sigaction before = disposition(signal);
    if (!is_ours(before)) listener->under = before;
    listener->next.store(newest_.load());
    fell_through_.store(false);
    newest_.store(listener.get());
    // Also where it was there already: a handler that runs now may be about to remove it.
    const struct sigaction action = ours();
    if (::sigaction(signal, &action, nullptr) != 0) {
      const int error = errno;
      newest_.store(listener->next.load());
      wait_for_handlers(process);
      throw std::system_error(error, std::generic_category(), "SignalStop: sigaction");
    }
    settle(signal, process);
    forget(process);
    return listener.release();
  }

  /// When it returns, no handler uses the inbox any more.
  void remove(int signal, SignalListener* listener) noexcept {
    const pid_t process = ::getpid();
    const Lock lock{holder_};
    listener->told.store(true);
    listener->gone = true;
    settle(signal, process);
    forget(process);
  }

 private:
  static_assert(std::atomic<pid_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free &&
                std::atomic<SignalListener*>::is_always_lock_free);

  /// A mutex that a forked child finds free, whoever held it in the parent. Whatever was interrupted there is
  /// complete: each change is one store.
  class Lock {
   public:
    explicit Lock(std::atomic<pid_t>& holder) noexcept : holder_(holder) {
      const pid_t process = ::getpid();
      pid_t seen = 0;
      while (!holder_.compare_exchange_strong(seen, process)) {
        if (seen != process) continue;  // somebody in the parent: taken over at the next try
        nap();
        seen = 0;
      }
    }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;
    ~Lock() { holder_.store(0); }

   private:
    std::atomic<pid_t>& holder_;
  };

  // Not yield(), which a thread of high priority could call for ever, to the harm of the one that it waits for.
  static void nap() noexcept { std::this_thread::sleep_for(std::chrono::microseconds{20}); }

  static void handle(int signal) noexcept {
    const int error = errno;
    of(signal).arrived(signal, ::getpid());
    errno = error;
  }

  static struct sigaction ours() noexcept {
    struct sigaction action {};
    action.sa_handler = &handle;
    action.sa_flags = SA_RESTART | SA_ONSTACK;
    // No other handler comes between: it might never return, and destructors wait for ours.
    sigfillset(&action.sa_mask);
    return action;
  }

  static struct sigaction disposition(int signal) noexcept {
    struct sigaction action {};
    ::sigaction(signal, nullptr, &action);
    return action;
  }

  static bool same(const struct sigaction& a, const struct sigaction& b) noexcept {
    if (((a.sa_flags ^ b.sa_flags) & SA_SIGINFO) != 0) return false;
    return (a.sa_flags & SA_SIGINFO) != 0 ? a.sa_sigaction == b.sa_sigaction : a.sa_handler == b.sa_handler;
  }

  // In the handler.
  void arrived(int signal, pid_t process) noexcept {
    const bool counted = process_.load() == process;  // else in a child, where nobody waits for us
    if (counted) running_.fetch_add(1);
    if (!tell(signal, process)) fall_through(signal, process);
    if (counted) running_.fetch_sub(1);
  }

  // False if nobody wants to be told.
  bool tell(int signal, pid_t process) noexcept {
    for (SignalListener* listener = newest_.load(); listener != nullptr; listener = listener->next.load()) {
      if (listener->process != process || listener->told.exchange(true)) continue;
      listener->inbox->put(signal);
      settle(signal, process);
      return true;
    }
    return false;
  }

  // In a forked child of the program's own, or the last listener was told or left since the kernel chose our handler:
  // the signal has its old effect.
  void fall_through(int signal, pid_t process) noexcept {
    settle(signal, process);
    const struct sigaction* const before = wanted(process);
    if (before == nullptr) {  // somebody new
      tell(signal, process);
      return;
    }
    // Nobody knows what a handler means by it that was installed over ours and calls ours. Only once, lest it goes in
    // a circle. It comes when ours has returned.
    if (same(disposition(signal), *before) && !fell_through_.exchange(true)) ::raise(signal);
  }

  // What the list says the disposition should be; nullptr: our handler.
  const struct sigaction* wanted(pid_t process) const noexcept {
    for (const SignalListener* listener = newest_.load(); listener != nullptr; listener = listener->next.load()) {
      if (listener->process == process && !listener->told.load()) return nullptr;
      if (listener->under) return &*listener->under;
    }
    return &default_action_;
  }

  // Takes our handler away if nobody wants it any more. What somebody else installed over it stays.
  void settle(int signal, pid_t process) noexcept {
    const struct sigaction* restored = nullptr;
    const struct sigaction action = ours();
    while (true) {
      const struct sigaction* const next = wanted(process);
      const struct sigaction now = disposition(signal);
      if (next != nullptr) {
        if (!is_ours(now)) return;
      } else {
        // Somebody new installed ours, and we removed it.
        if (restored == nullptr || !same(now, *restored)) return;
      }
      ::sigaction(signal, next != nullptr ? next : &action, nullptr);
      restored = next;
    }
  }

  bool is_alive(const SignalListener& listener, pid_t process) const noexcept {
    return !listener.gone && listener.process == process;
  }

  // Takes out those that nobody waits for, but for those that know what is to be restored in the end. One of them
  // stays for ever: a program may have saved our handler, and install it again when nobody listens.
  void forget(pid_t process) noexcept {
    bool any_alive = false;
    for (SignalListener* each = newest_.load(); each != nullptr; each = each->next.load()) {
      any_alive = any_alive || is_alive(*each, process);
    }
    SignalListener* forgotten = nullptr;
    SignalListener* above = nullptr;
    for (SignalListener* each = newest_.load(); each != nullptr;) {
      SignalListener* const next = each->next.load();
      const bool last_to_know = each->under && (above != nullptr ? !above->under : !any_alive);
      if (is_alive(*each, process) || last_to_know) {
        above = each;
      } else {
        (above != nullptr ? above->next : newest_).store(next);
        // A handler may stand here: its way on stays as it is.
        each->next_forgotten = std::exchange(forgotten, each);
      }
      each = next;
    }
    wait_for_handlers(process);
    while (forgotten != nullptr) {
      SignalListener* const each = std::exchange(forgotten, forgotten->next_forgotten);
      // Those of the parent may be in use by a handler that found itself in a child, which is not counted.
      if (each->process == process) delete each;
    }
  }

  // Until all that may have seen what is no longer in the list are done. There are few: each takes a listener away.
  void wait_for_handlers(pid_t process) const noexcept {
    if (process_.load() != process) return;  // they were in the parent
    while (running_.load() != 0) nap();
  }

  std::atomic<SignalListener*> newest_{nullptr};
  std::atomic<int> running_{0};            // handlers, in ...
  std::atomic<pid_t> process_{0};          // ... this process
  std::atomic<bool> fell_through_{false};  // since the last listener came
  std::atomic<pid_t> holder_{0};           // of the lock; 0: nobody
  struct sigaction default_action_ {};
};

inline constinit std::array<CaughtSignal, NSIG> caught_signals{};

inline CaughtSignal& CaughtSignal::of(int signal) noexcept { return caught_signals[static_cast<std::size_t>(signal)]; }

/// While it lives, this thread takes no signals and neither will the threads that it starts; but for those that say
/// that the thread itself is at fault.
class SignalsBlocked {
 public:
  SignalsBlocked() noexcept {
    sigset_t most;
    sigfillset(&most);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS}) sigdelset(&most, fault);
    ::pthread_sigmask(SIG_BLOCK, &most, &before_);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

}  // namespace pyarallel::detail
