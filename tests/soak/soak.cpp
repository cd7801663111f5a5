// Maps and streams random workloads on forked workers while the workers are killed at random moments, and checks after
// each call that nothing was lost and nothing ran twice: soak SECONDS [SEED].
#include <fmt/core.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <list>
#include <memory>
#include <numeric>
#include <pyarallel.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

using namespace pyarallel;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t most_items = 20'000;
constexpr std::size_t most_workers = 6;

/// What the workers tell besides their results.
struct Shared {
  std::atomic<int> starts[most_items];
  std::atomic<pid_t> pids[most_workers];
};

Shared& shared() {
  static auto* const memory =
      static_cast<Shared*>(::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  return *memory;
}

[[noreturn]] void fail(const std::string& what) {
  fmt::print(stderr, "soak: {}\n", what);
  std::abort();
}

void spend(std::chrono::microseconds time) {
  const auto until = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < until) {
  }
}

/// Its number may be another process's by now.
bool is_child(pid_t pid) {
  std::ifstream file{"/proc/" + std::to_string(pid) + "/stat"};
  std::string text;
  std::getline(file, text);
  const std::size_t behind_name = text.rfind(')');
  return behind_name != std::string::npos && std::atoi(text.c_str() + behind_name + 3) == ::getpid();
}

std::size_t runs = 0;
std::size_t crashes = 0;

/// Kills a random worker now and then, until it is destroyed.
class Killer {
 public:
  Killer(std::uint64_t seed, std::chrono::microseconds pause)
      : thread_([seed, pause](const std::stop_token& stop) {
          std::mt19937_64 random{seed};
          while (!stop.stop_requested()) {
            std::this_thread::sleep_for(pause * (random() % 100) / 50);
            const pid_t victim = shared().pids[random() % most_workers].load();
            if (victim > 0 && is_child(victim)) ::kill(victim, SIGKILL);
          }
        }) {}

 private:
  std::jthread thread_;
};

struct Workload {
  std::size_t items;
  std::size_t workers;
  std::size_t chunk;
  std::size_t window;
  std::chrono::microseconds slowest;
  bool pulled;
  bool streamed;
  bool ordered;
  bool reported;
  bool retried;
  bool throws;
  std::size_t result_bytes;  // 0: a number
  std::chrono::microseconds kill_pause;
};

template <class R, class Make>
void run(const Workload& load, std::uint64_t seed, Make make) {
  for (auto& starts : shared().starts) starts = 0;
  for (auto& pid : shared().pids) pid = 0;
  const auto fn = [&](std::size_t item, const Task& task) -> R {
    ++shared().starts[item];
    if (load.slowest > 0us) spend(load.slowest * (item * 2654435761U % 100) / 100);
    if (load.throws && item % 17 == 3) throw std::runtime_error("item " + std::to_string(item));
    static_cast<void>(task);
    return make(item);
  };
  Options options{.workers = load.workers, .executor = Executor::process};
  options.batch = Batch{.size = load.window, .chunk = load.chunk};
  options.worker_init = [] {
    for (auto& pid : shared().pids) {
      pid_t free = pid.load();
      // Of a worker that is gone, or nobody's.
      if ((free == 0 || ::kill(free, 0) != 0) && pid.compare_exchange_strong(free, ::getpid())) break;
    }
  };
  if (load.retried) options.retry = Retry{.attempts = 3, .backoff = 0s, .on = retry_on<WorkerCrashed>};
  std::size_t reported = 0;
  if (load.reported) options.on_progress = [&](std::size_t done, std::size_t) { reported = done; };

  std::vector<std::size_t> items(load.items);
  std::iota(items.begin(), items.end(), std::size_t{0});
  std::vector<ItemResult<R>> outcomes;
  RunStatus status{};
  const auto run_over = [&](auto& input) {
    if (load.streamed) {
      auto stream = parallel_iter(fn, input, options, {.ordered = load.ordered});
      for (auto& item : stream) {
        if (load.ordered && item.index != outcomes.size()) fail(fmt::format("item {} came too soon", item.index));
        outcomes.push_back(std::move(item));
      }
      status = stream.status();
      std::ranges::sort(outcomes, {}, &ItemResult<R>::index);
    } else {
      auto result = parallel_map(fn, input, options);
      status = result.status();
      outcomes = std::move(result).item_results();
    }
  };
  {
    const Killer killer{seed, load.kill_pause};
    if (load.pulled) {
      std::list<std::size_t> list(items.begin(), items.end());
      run_over(list);
    } else {
      run_over(items);
    }
  }
  if (status != RunStatus::completed) fail("the run is not complete");
  if (outcomes.size() != load.items) fail(fmt::format("{} of {} items have an outcome", outcomes.size(), load.items));
  if (load.reported && reported != load.items) fail(fmt::format("{} of {} reported", reported, load.items));
  std::size_t crashed = 0;
  for (std::size_t index = 0; index < outcomes.size(); ++index) {
    const ItemResult<R>& item = outcomes[index];
    if (item.index != index) fail(fmt::format("item {} has no outcome, or more than one", index));
    const int starts = shared().starts[item.index];
    const bool fails = load.throws && item.index % 17 == 3;
    if (item.ok()) {
      if (fails || item.value() != make(item.index)) fail(fmt::format("item {} has a wrong value", item.index));
      // Its attempts, of which those before the last may have been killed before fn began.
      if (starts < 1 || starts > item.attempts) {
        fail(fmt::format("item {} ran {} times in {} attempts", item.index, starts, item.attempts));
      }
    } else if (item.error().template is<WorkerCrashed>()) {
      ++crashed;
      if (starts > item.attempts) fail(fmt::format("item {} ran {} times", item.index, starts));
    } else if (!fails || item.error().what() != "item " + std::to_string(item.index)) {
      fail(fmt::format("item {} failed with {}", item.index, item.error().what()));
    } else if (starts < 1 || starts > item.attempts) {
      fail(fmt::format("failed item {} ran {} times in {} attempts", item.index, starts, item.attempts));
    }
  }
  crashes += crashed;
  ++runs;
}

}  // namespace

int main(int argc, char** argv) {
  const std::chrono::seconds time{argc > 1 ? std::atoi(argv[1]) : 10};
  const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : std::random_device{}();
  fmt::print("soak for {} s with seed {}\n", time.count(), seed);
  std::mt19937_64 random{seed};
  const auto one_of = [&](auto... values) {
    const std::common_type_t<decltype(values)...> all[] = {values...};
    return all[random() % sizeof...(values)];
  };
  for (const auto until = std::chrono::steady_clock::now() + time; std::chrono::steady_clock::now() < until;) {
    const std::uint64_t run_seed = random();
    random.seed(run_seed);
    Workload load{.items = one_of(1UL, 7UL, 100UL, 1'000UL, most_items),
                  .workers = one_of(1UL, 2UL, 3UL, most_workers),
                  .chunk = one_of(0UL, 0UL, 1UL, 10UL),
                  .window = one_of(0UL, 0UL, 7UL, 100UL),
                  .slowest = one_of(0us, 1us, 20us, 2'000us),
                  .pulled = one_of(false, true),
                  .streamed = one_of(false, true),
                  .ordered = one_of(false, true),
                  .reported = one_of(false, true),
                  .retried = one_of(false, true),
                  .throws = one_of(false, true),
                  .result_bytes = one_of(0UL, 0UL, 10UL, 100'000UL),
                  .kill_pause = one_of(20us, 100us, 1'000us, 20'000us)};
    if (load.slowest > 100us) load.items = std::min(load.items, std::size_t{100});
    if (load.result_bytes > 1'000) load.items = std::min(load.items, std::size_t{1'000});
    try {
      if (load.result_bytes == 0) {
        run<std::size_t>(load, run_seed, [](std::size_t item) { return item * 3; });
      } else {
        const std::size_t size = load.result_bytes;
        run<std::string>(load, run_seed, [size](std::size_t item) {
          return std::string(size + item % 7, static_cast<char>('a' + item % 26));
        });
      }
    } catch (const std::exception& e) {
      fail(fmt::format("seed {}: the call threw: {}", run_seed, e.what()));
    }
  }
  fmt::print("{} runs, {} items crashed: nothing was lost, and nothing ran twice\n", runs, crashes);
}
