// The bare parked pool, by hand, and nothing else: no errors, no policies, one call at a time. Threads sleep
// between calls. The caller takes part, begins at once, and waits only for those who have begun.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "peer.hpp"

namespace {

class ParkedPool {
 public:
  explicit ParkedPool(std::size_t workers) : workers_(workers) {}
  ParkedPool(const ParkedPool&) = delete;
  ParkedPool& operator=(const ParkedPool&) = delete;

  ~ParkedPool() {
    {
      const std::lock_guard lock{mutex_};
      closing_ = true;
    }
    woken_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  template <class Body>
  void each(std::size_t count, Body body) {
    Job job{count, workers_};
    job.run = [](Job& self, void* function) { self.run_all(*static_cast<Body*>(function)); };
    job.body = &body;
    {
      const std::lock_guard lock{mutex_};
      job_ = &job;
      ++jobs_;
    }
    woken_.notify_all();
    // In the first call they come while the first items run already.
    while (threads_.size() + 1 < workers_) threads_.emplace_back([this] { serve(); });
    job.run(job, job.body);
    std::unique_lock lock{mutex_};
    job_ = nullptr;
    all_left_.wait(lock, [&] { return inside_ == 0; });
  }

 private:
  struct Job {
    Job(std::size_t all, std::size_t threads) : count(all), workers(threads) {}

    // Guided: claims that shrink towards the end, down to one item.
    template <class Body>
    void run_all(Body& function) {
      while (true) {
        const std::size_t seen = next.load(std::memory_order_relaxed);
        if (seen >= count) return;
        const std::size_t size = std::max<std::size_t>((count - seen) / (2 * workers), 1);
        const std::size_t first = next.fetch_add(size, std::memory_order_relaxed);
        for (std::size_t i = first; i < std::min(first + size, count); ++i) function(i);
      }
    }

    std::size_t count;
    std::size_t workers;
    void (*run)(Job&, void*) = nullptr;
    void* body = nullptr;
    alignas(64) std::atomic<std::size_t> next{0};
  };

  void serve() {
    std::unique_lock lock{mutex_};
    std::size_t seen = 0;
    while (true) {
      woken_.wait(lock, [&] { return closing_ || (job_ != nullptr && jobs_ != seen); });
      if (closing_) return;
      seen = jobs_;
      ++inside_;
      Job& job = *job_;
      lock.unlock();
      job.run(job, job.body);
      lock.lock();
      if (--inside_ == 0) all_left_.notify_one();
    }
  }

  std::size_t workers_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable woken_;
  std::condition_variable all_left_;
  Job* job_ = nullptr;
  std::size_t jobs_ = 0;
  std::size_t inside_ = 0;
  bool closing_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  bench::add_maps<bench::LoopPeer<ParkedPool>>(program, "parked pool");
  bench::add_blocked<bench::LoopPeer<ParkedPool>>(program, "parked pool");
  return program.main(argc, argv);
}
