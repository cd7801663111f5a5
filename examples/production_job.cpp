// production_job [CHECKPOINT_FILE]: a job over a paid API that may be interrupted, killed and run again. Copy it.
//
// Each answer is in the checkpoint file before the job counts it: no call that was counted is paid twice, not even
// after a kill -9. Exit status, for whoever starts the job:
//
//   0            done: all orders are invoiced, and the checkpoint file is deleted
//   1            done, but some orders failed: they are listed, and the next run tries them again, and only them
//   2            the job could not run: the message says why, and of a checkpoint file also what to do
//   3            too many errors, the service seems to be down: run it again later
//   4            out of time: run it again
//   128 + n      interrupted by signal n (130: Ctrl-C, 143: SIGTERM): run it again
//
// Run again, it goes on where it was. As it stands here, it works on orders of a fake API that it starts itself.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <pyarallel.hpp>
#include <pyarallel/checkpoint.hpp>
#include <pyarallel/progress.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "support/api_client.hpp"
#include "support/fake_api.hpp"

namespace fs = std::filesystem;
using namespace std::chrono_literals;

namespace {

// The job ---------------------------------------------------------------------------------------------

// What goes in and what comes out: structs of what the library can encode need no code of yours to be stored.
struct Order {
  std::int64_t number;
  std::string customer;
};
struct Invoice {
  std::int64_t order;
  std::string text;
};

// The expensive call. What it throws is the failure of its order only. It ends by itself, because the client has
// timeouts of its own: a thread that waits for ever could not be interrupted.
Invoice make_invoice(demo::ApiClient& api, const Order& order) {
  return {.order = order.number, .text = order.customer + ": " + api.get(fmt::format("/items/{}", order.number))};
}

// Where the results go. Only when they are safe there may the checkpoint file be deleted.
void deliver(std::span<const Invoice> invoices) {
  for (const auto& invoice : invoices.last(std::min<std::size_t>(invoices.size(), 3))) {
    fmt::print("order {}, {}\n", invoice.order, invoice.text);
  }
  fmt::print("{} invoices\n", invoices.size());
}

enum ExitStatus {
  all_done = 0,
  some_failed = 1,
  could_not_run = 2,
  service_down = 3,
  out_of_time = 4,
  by_signal = 128
};

int run_job(demo::ApiClient& api, const std::vector<Order>& orders, const fs::path& checkpoint,
            std::string_view command) {
  // While it lives, the first Ctrl-C lets the calls that are under way end, and stores their answers. The second one
  // ends the program at once, which loses those, and nothing else.
  const pyarallel::SignalStop signals{SIGINT, SIGTERM};

  // One for all calls to this API, from whichever parallel_map of the program: their sum keeps to the contract. If
  // several programs share the contract: Limiter::named().
  const pyarallel::Limiter limiter(pyarallel::RateLimit{.count = 30});

  // A missing file is a fresh start; the run makes it.
  if (fs::exists(checkpoint) && !fs::is_empty(checkpoint)) {
    const auto earlier = pyarallel::checkpoint_info(checkpoint);
    fmt::print(stderr, "{} has {} results of an earlier run\n", checkpoint.string(), earlier.completed);
  }

  const auto result = pyarallel::parallel_map(
      [&](const Order& order) { return make_invoice(api, order); }, orders,
      {.workers = 8,  // calls at once: what the service bears, not the number of CPUs
       .rate_limit = limiter,
       // 429 and 503, and the Retry-After that comes with them. Other errors are not worth another call here.
       .retry = pyarallel::Retry::for_http({.attempts = 5}),
       .timeout = 1h,     // after that no call begins: the job should be over before it is due again
       .max_errors = 10,  // so many failed orders, after their retries, mean that the service is down
       .stop = signals.token(),
       // Change the version when the answers would mean something else: another model, prompt or tariff. A file of
       // another version is refused, not mixed in.
       .checkpoint = pyarallel::sqlite_checkpoint(checkpoint, {.version = "tariff 2024"}),
       // Answers are stored under this, so orders may be added, removed and sorted otherwise between two runs.
       .item_key = [](const Order& order) { return order.number; },
       .on_progress = pyarallel::ProgressBar{"orders"}});

  // What there is to say unless all is done: nothing is lost, and how to go on.
  const auto resumable = [&](std::string_view why) {
    fmt::print(stderr, "{}: {} of {} orders are done, and stored in {}; to go on: {}\n", why, result.successes().size(),
               orders.size(), checkpoint.string(), command);
  };
  if (!result.complete()) fmt::print(stderr, "{}\n", pyarallel::summary(result));
  switch (result.status()) {  // without a default, so that the compiler says if one is forgotten
    case pyarallel::RunStatus::completed:
      break;
    case pyarallel::RunStatus::timed_out:
      resumable("out of time");
      return out_of_time;
    case pyarallel::RunStatus::aborted:
      resumable("too many errors");
      return service_down;
    case pyarallel::RunStatus::cancelled:
      resumable(fmt::format("interrupted by signal {}", signals.signal()));
      return by_signal + signals.signal();
  }

  // Completed: every order has an answer, or an error of its own. Errors are not stored.
  if (!result.ok()) {
    for (const auto& [index, error] : result.failures()) {
      fmt::print(stderr, "order {} failed: {}\n", orders[index].number, error);
    }
    resumable("some orders failed");
    return some_failed;
  }
  deliver(result.values());
  fs::remove(checkpoint);
  return all_done;
}

// The demo: what your program has already ---------------------------------------------------------------

std::vector<Order> orders_to_do() {
  std::vector<Order> orders;
  for (std::int64_t number = 1; number <= 60; ++number) {
    orders.push_back({.number = number, .customer = fmt::format("customer {}", number % 7)});
  }
  return orders;
}

}  // namespace

int main(int argc, char** argv) {
  // A connection that breaks should be an error of its call, not the end of the program.
  std::signal(SIGPIPE, SIG_IGN);
  try {
    const demo::FakeApi server({.calls_per_second = 50, .burst = 50, .retry_after = 1s});  // forks: before any thread
    demo::ApiClient api(server.port());
    const fs::path checkpoint = argc > 1 ? argv[1] : "production_job.ckpt";
    const std::string command = fmt::format("{} '{}'", argv[0], checkpoint.string());
    return run_job(api, orders_to_do(), checkpoint, command);
  } catch (const std::exception& error) {
    // pyarallel::CheckpointError, for one. What was stored by then stays stored.
    fmt::print(stderr, "production_job: {}\n", error.what());
    return could_not_run;
  }
}
