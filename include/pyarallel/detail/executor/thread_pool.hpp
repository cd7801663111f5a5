// The threads behind Executor::thread: one pool for the process, started on demand, kept for the next call.
//
// A call offers a job: a body that up to `wanted` threads may join. Nobody is assigned: idle threads
// come and look for open jobs, and the calling thread may close the job at any time, after which
// nobody new joins it. So a call never waits for a thread that has not begun.
//
// The caller pays for one wake-up (or one thread start) only: each thread that joins wakes up to two
// more while the job wants some, so that 1000 workers are there after ten generations.
//
// Calls often follow each other closely, and many are over sooner than a thread could be woken: so a
// thread looks out for a moment before it sleeps. While one does, a job is not opened but offered: one
// atomic exchange puts it where that thread looks, and one takes it back if nobody came.
//
// Life and death. The pool is never destroyed: a call from a destructor of a static object must still
// find it. At exit a handler joins the idle threads; threads that are busy then belong to a call
// that some other thread has in progress, and are left alone, as exit() leaves any running thread.
// Calls after that start threads that are joined when the job closes. A forked child has none of the
// parent's threads: it starts over with a new pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdlib>
#include <iterator>
#include <list>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if __has_include(<unistd.h>)
#include <pthread.h>
#endif

#include "pyarallel/detail/function_ref.hpp"
#include "pyarallel/detail/parallelism.hpp"
#include "pyarallel/detail/spin.hpp"

namespace pyarallel::detail {

class ThreadPool {
 public:
  /// Work that several threads may join, each as a worker with a number of its own.
  class Job {
   public:
    /// Up to `most` threads, numbered from first_worker on, join by calling body(number), while
    /// has_work() says that it is worth it. Neither may throw; has_work() may be called under a lock.
    /// `wanted` of them as soon as the job is open; the others by call_another().
    Job(std::size_t first_worker, std::size_t most, std::size_t wanted, FunctionRef<void(std::size_t)> body,
        FunctionRef<bool()> has_work)
        : body_(body), has_work_(has_work), next_worker_(first_worker), wanted_(wanted), most_(most - wanted) {}
    Job(const Job&) = delete;
    Job& operator=(const Job&) = delete;

   private:
    friend class ThreadPool;
    bool wants() const { return wanted_ > 0 && has_work_(); }

    FunctionRef<void(std::size_t)> body_;
    FunctionRef<bool()> has_work_;
    std::size_t next_worker_;
    std::vector<std::size_t> returned_workers_;  // numbers of those who left
    std::size_t wanted_;                         // how many more may join now
    std::size_t most_;                           // how many more may be wanted later
    std::size_t left_ = 0;                       // how many found nothing more to do, and may be called again
    std::atomic<std::size_t> inside_{0};         // changed under the pool's mutex, read by a spinning closer
    std::atomic<bool> undecided_{false};         // it was offered, and nobody has looked yet whether to join
    bool open_ = false;                          // others may find it
  };

  static ThreadPool& instance() {
    ThreadPool* pool = current().load(std::memory_order_acquire);
    return pool != nullptr ? *pool : create();
  }

  /// Lets threads join. False if it wants some and none can be had now.
  bool open(Job& job) {
    if (offer(job)) return true;
    std::unique_lock lock{mutex_};
    show(job);
    return wanted() <= on_their_way() || call_one(lock);
  }

  /// There is work again for threads that found none and left.
  void call_again(Job& job) {
    end_offer(job);
    std::unique_lock lock{mutex_};
    show(job);
    job.wanted_ += std::exchange(job.left_, 0);
    look_for_wanting_jobs();
    if (wanted() > on_their_way()) call_one(lock);
  }

  /// There is work for one thread more than so far, if the job may have one more. False if it has none
  /// at all, and none can be had now.
  bool call_another(Job& job) {
    end_offer(job);
    std::unique_lock lock{mutex_};
    show(job);
    if (job.most_ > 0) {
      --job.most_;
      ++job.wanted_;
    }
    // Also where no more may be wanted: one that was called may have found nothing and stayed away.
    look_for_wanting_jobs();
    return wanted() <= on_their_way() || call_one(lock) || job.inside_.load(std::memory_order_relaxed) > 0;
  }

  /// Nobody joins any more; returns when all have left.
  void close(Job& job) {
    end_offer(job);
    if (!job.open_) return;
    {
      auto lock = lock_soon(mutex_);
      remove(job);
      if (job.inside_.load(std::memory_order_relaxed) == 0) {
        if (exiting_) join_threads(lock);
        return;
      }
    }
    // The last worker is often about to finish, and being woken takes longer than that.
    const auto all_left = [&] { return job.inside_.load(std::memory_order_relaxed) == 0; };
    for (int i = 0; i < 32 && !all_left(); ++i) pause_cpu();
    for (int i = 0; i < 200 && !all_left(); ++i) std::this_thread::yield();
    auto lock = lock_soon(mutex_);
    // Under the mutex also where the spin succeeded: the last worker lets go of the job with it held.
    job_left_.wait(lock, all_left);
    if (exiting_) join_threads(lock);
  }

 private:
  struct Thread {
    std::jthread thread;
    bool busy = false;     // with a job
    bool leaving = false;  // somebody joins it
  };

  ThreadPool() = default;

  static std::atomic<ThreadPool*>& current() noexcept {
    static constinit std::atomic<ThreadPool*> pool{nullptr};
    return pool;
  }

  // Without a lock, which a child that is forked meanwhile would wait for for ever. Threads that come at the same time
  // all get here: then both handlers run more often, which does no harm. They are there before anybody sees a pool.
  static ThreadPool& create() {
#if __has_include(<unistd.h>)
    pthread_atfork(nullptr, nullptr, [] { current().store(new ThreadPool, std::memory_order_release); });
#endif
    std::atexit([] {
      ThreadPool* const pool = current().load(std::memory_order_acquire);
      if (pool == nullptr) return;
      std::unique_lock lock{pool->mutex_};
      pool->exiting_ = true;
      pool->join_threads(lock);
    });
    auto* const mine = new ThreadPool;  // never deleted, see above
    ThreadPool* first = nullptr;
    if (current().compare_exchange_strong(first, mine, std::memory_order_acq_rel)) return *mine;
    delete mine;
    return *first;
  }

  // All that are not busy; they leave as soon as they see that the process exits.
  void join_threads(std::unique_lock<std::mutex>& lock) {
    std::list<Thread> leaving;
    for (auto thread = threads_.begin(); thread != threads_.end();) {
      const auto next = std::next(thread);
      if (!thread->busy) {
        thread->leaving = true;
        leaving.splice(leaving.end(), threads_, thread);
      }
      thread = next;
    }
    work_.notify_all();
    lock.unlock();
    leaving.clear();
  }

  // An offer ------------------------------------------------------------------------------------------------

  // Leaves the job to a thread that looks out. False if there is none, or it has another one to look at.
  bool offer(Job& job) {
    if (looking_out_.load(std::memory_order_relaxed) == 0 || offered_.load(std::memory_order_relaxed) != nullptr) {
      return false;
    }
    offers_.store(offers_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    job.undecided_.store(true, std::memory_order_relaxed);
    Job* nothing = nullptr;
    // Sequentially consistent, as in spin(): either the last thread that looks out sees the job before it sleeps,
    // or we see that it does not look out any more.
    if (offered_.compare_exchange_strong(nothing, &job, std::memory_order_seq_cst) &&
        (looking_out_.load(std::memory_order_seq_cst) > 0 || !take_back(job))) {
      return true;
    }
    decline(job);  // nobody saw it
    return false;
  }

  // False if it is not on offer, or a thread has taken it.
  bool take_back(Job& job) {
    Job* offered = &job;
    // Relaxed first: a failed exchange would take the cache line from those who look at it.
    return offered_.load(std::memory_order_relaxed) == &job &&
           offered_.compare_exchange_strong(offered, nullptr, std::memory_order_relaxed);
  }

  // Whoever takes an offer decides: until then the job stays. Null if there is none.
  Job* take_offer() {
    if (offered_.load(std::memory_order_seq_cst) == nullptr) return nullptr;
    return offered_.exchange(nullptr, std::memory_order_acquire);
  }

  static void decline(Job& job) { job.undecided_.store(false, std::memory_order_release); }

  // After this the job is open, or only its owner knows it. Waits as long as one call of has_work() takes, unless
  // the thread that decides is not running.
  void end_offer(Job& job) {
    const auto undecided = [&] { return job.undecided_.load(std::memory_order_acquire); };
    if (!undecided()) return;
    if (take_back(job)) {
      decline(job);
      return;
    }
    for (int i = 0; i < 64 && undecided(); ++i) pause_cpu();
    for (int i = 0; i < 100 && undecided(); ++i) std::this_thread::yield();
    while (undecided()) std::this_thread::sleep_for(std::chrono::microseconds{50});
  }

  // Under the mutex --------------------------------------------------------------------------------------

  // From now on others may find the job.
  void show(Job& job) {
    if (job.open_) return;
    open_jobs_.push_back(&job);
    job.open_ = true;
    decline(job);  // whoever still looked: it is decided
    look_for_wanting_jobs();
  }

  void remove(Job& job) {
    open_jobs_.erase(std::find(open_jobs_.begin(), open_jobs_.end(), &job));
    look_for_wanting_jobs();
  }

  // One more thread on its way to the open jobs: one that spins, an idle one, or a new one. False if
  // that is impossible.
  bool call_one(std::unique_lock<std::mutex>& lock) {
    if (looking_out_.load(std::memory_order_relaxed) > summoned_) {
      ++summoned_;
      return true;
    }
    if (idle_ > woken_) {
      ++woken_;
      waker_cpu_ = this_cpu();
      // Out of the lock, so that those who wake others up do not wait for each other.
      lock.unlock();
      work_.notify_one();
      lock.lock();
      return true;
    }
    ++starting_;
    // Out of the lock: starting a thread takes as long as a thousand small items.
    lock.unlock();
    std::list<Thread> started(1);
    bool ok = true;
    try {
      Thread& self = started.front();
      started.front().thread = std::jthread([this, &self] { serve(self); });
    } catch (const std::system_error&) {
      ok = false;
    }
    lock.lock();
    if (ok) {
      threads_.splice(threads_.end(), started);
    } else {
      --starting_;
    }
    return ok;
  }

  Job* job_that_wants() {
    const auto found = std::find_if(open_jobs_.begin(), open_jobs_.end(), [](const Job* job) { return job->wants(); });
    return found != open_jobs_.end() ? *found : nullptr;
  }

  std::size_t on_their_way() const noexcept { return woken_ + starting_ + summoned_; }

  // Threads that open jobs could use now.
  std::size_t wanted() const {
    std::size_t sum = 0;
    for (const Job* job : open_jobs_) sum += job->wants() ? job->wanted_ : 0;
    return sum;
  }

  void serve(Thread& self) {
    std::unique_lock lock{mutex_};
    --starting_;
    while (!self.leaving) {
      if (Job* job = job_that_wants()) {
        self.busy = true;
        ++busy_;
        join(*job, lock);
        --busy_;
        self.busy = false;
        continue;
      }
      if (exiting_) return;
      if (may_spin()) {
        spin(lock);
        if (self.leaving || job_that_wants() != nullptr) continue;
      }
      ++idle_;
      work_.wait(lock);
      --idle_;
      // After a spurious wake-up this counts one too few for a moment: an extra call, never a missing one.
      if (woken_ > 0) --woken_;
    }
  }

  // A thread that sleeps costs its caller 4 to 20 us to wake and arrives 50 us later. So it looks out for a
  // while before it sleeps, but only where that takes a CPU from nobody: the threads that look out, the busy
  // ones and one caller need one each.
  bool may_spin() const noexcept { return busy_ + looking_out_.load(std::memory_order_relaxed) + 2 <= cpus_; }

  void spin(std::unique_lock<std::mutex>& lock) {
    looking_out_.fetch_add(1, std::memory_order_relaxed);
    const int waker_cpu = waker_cpu_;
    lock.unlock();
    Job* taken = nullptr;
    using clock = std::chrono::steady_clock;
    auto until = clock::now() + std::chrono::microseconds{50};
    // A tiny job is done before a second worker could help, and to come for it would only make its caller wait for
    // us to leave again: so a job is taken when it is still there at a second look. Not more looks than that, as each
    // of them takes the cache line from the caller that wants to write to it.
    for (std::size_t seen = 0; taken == nullptr && clock::now() < until;) {
      if (this_cpu() == waker_cpu) {
        // The kernel often puts a woken thread where the one who woke it is. That one should not wait for us; while
        // we wait for it, we may be moved to a CPU that has nothing to do.
        std::this_thread::yield();
      } else {
        for (int i = 0; i < 10; ++i) pause_cpu();
      }
      if (wanting_.load(std::memory_order_relaxed)) break;
      const bool any = offered_.load(std::memory_order_relaxed) != nullptr;
      const std::size_t offer = any ? offers_.load(std::memory_order_relaxed) : 0;
      if (any && offer == seen) taken = take_offer();
      if (taken != nullptr && !taken->has_work_()) decline(*std::exchange(taken, nullptr));
      if (offer != std::exchange(seen, offer) && any) until = clock::now() + std::chrono::microseconds{50};
    }
    lock = lock_soon(mutex_);
    // Whoever summons does so under the mutex, so a job that came too late to be seen above is seen now. A job that
    // is offered too late is taken now, or its owner sees that nobody looks out.
    const std::size_t others = looking_out_.fetch_sub(1, std::memory_order_seq_cst) - 1;
    summoned_ = std::min(summoned_, others);
    if (taken != nullptr) show(*taken);
    if (Job* const late = take_offer()) show(*late);
  }

  // Keeps what the spinning threads look at up to date.
  void look_for_wanting_jobs() {
    const bool any = std::any_of(open_jobs_.begin(), open_jobs_.end(), [](const Job* job) { return job->wanted_ > 0; });
    if (any != wanting_.load(std::memory_order_relaxed)) wanting_.store(any, std::memory_order_relaxed);
    if (!any) summoned_ = 0;
  }

  void join(Job& job, std::unique_lock<std::mutex>& lock) {
    --job.wanted_;
    look_for_wanting_jobs();
    job.inside_.fetch_add(1, std::memory_order_relaxed);
    std::size_t worker = job.next_worker_;
    if (job.returned_workers_.empty()) {
      ++job.next_worker_;
    } else {
      worker = job.returned_workers_.back();
      job.returned_workers_.pop_back();
    }
    // While a job wants somebody, somebody is on the way: whoever arrives sees to that. (A
    // thread that cannot be started is no error: jobs go on with those that are there.)
    for (int i = 0; i < 2 && wanted() > on_their_way(); ++i) {
      if (!call_one(lock)) break;
    }
    lock.unlock();
    job.body_(worker);
    lock = lock_soon(mutex_);
    job.returned_workers_.push_back(worker);
    ++job.left_;
    // The closer may destroy the job as soon as it has the mutex again.
    if (job.inside_.fetch_sub(1, std::memory_order_relaxed) == 1) job_left_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable job_left_;  // by all who were inside
  std::vector<Job*> open_jobs_;
  std::list<Thread> threads_;
  const std::size_t cpus_ = cpus_at_start();
  std::size_t busy_ = 0;      // with a job
  std::size_t idle_ = 0;      // asleep until there is work
  int waker_cpu_ = -1;        // where somebody was when he woke one
  std::size_t woken_ = 0;     // of those, the ones that were woken and are not there yet
  std::size_t starting_ = 0;  // new, and not there yet
  std::size_t summoned_ = 0;  // of those that look out, the ones that will look for a job
  bool exiting_ = false;
  alignas(64) std::atomic<std::size_t> looking_out_{0};  // threads; changed under the mutex
  std::atomic<Job*> offered_{nullptr};
  std::atomic<std::size_t> offers_{0};  // to tell one from the next
  std::atomic<bool> wanting_{false};    // an open job wants somebody
};

}  // namespace pyarallel::detail
