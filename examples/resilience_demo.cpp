// What pyarallel does when the world does not cooperate, over real HTTP, in about ten seconds.
//
// The demo starts a metered API in a process of its own and calls it in six acts (five where there
// is no SQLite). Each act makes claims and checks them against what the server wrote down. The exit
// status is 0 only if every claim holds.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <optional>
#include <pyarallel.hpp>
#include <pyarallel/progress.hpp>
#include <ranges>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "support/api_client.hpp"
#include "support/child_process.hpp"
#include "support/fake_api.hpp"
#include "support/receipts.hpp"
#include "support/stopwatch.hpp"
#include "support/temporary_folder.hpp"

#if __has_include(<sqlite3.h>)
#include <pyarallel/checkpoint.hpp>
#endif

using namespace std::chrono_literals;

namespace {

constexpr demo::Quota quota{.calls_per_second = 50, .burst = 100, .retry_after = 2s};
constexpr int items = 180;  // more than a burst, and fewer than a burst and what a pause gives back
constexpr std::size_t workers = 16;

// Everything an act needs.
struct Stage {
  demo::ApiClient api;
  demo::Receipts receipts;

  void begin(std::string_view headline, std::string_view story) {
    receipts.act(headline, story);
    api.del("/ledger");
  }
  demo::Ledger measured_by_server() { return demo::Ledger::from_text(api.get("/ledger")); }
};

bool every_answer_in_order(const pyarallel::MapResult<std::string>& result) {
  int id = 0;
  return std::ranges::all_of(result.values(),
                             [&](const std::string& answer) { return answer == fmt::format("item {}", id++); });
}

// `values()` promises the whole result, so it must refuse to pass a part off as that.
std::optional<pyarallel::Error> refusal_to_give_part(const pyarallel::MapResult<std::string>& result) {
  try {
    static_cast<void>(result.values());
  } catch (...) {
    return pyarallel::Error(std::current_exception());
  }
  return std::nullopt;
}

// Quotes the failures if there are any: who sees this claim fail wants to know why.
void claim_every_item_succeeds(demo::Receipts& receipts, const pyarallel::MapResult<std::string>& result) {
  receipts.claim(result.ok() && every_answer_in_order(result), "every item succeeds, in input order",
                 fmt::format("{} of {}", result.successes().size(), result.size()));
  if (const auto refusal = refusal_to_give_part(result)) receipts.quote(refusal->what());
}

template <class Expected>
std::size_t failures_of_type(const pyarallel::MapResult<std::string>& result) {
  return static_cast<std::size_t>(std::ranges::count_if(
      result.failures(), [](const pyarallel::Failure& failure) { return failure.error.is<Expected>(); }));
}

double seconds(std::chrono::duration<double> time) { return time.count(); }

// -------------------------------------------------------------------------------------------------

void one_refusal_pauses_the_pool(Stage& stage) {
  stage.begin("One 429 pauses the whole pool",
              fmt::format("{} workers at full speed against a quota of {} calls a second (bursts of {}).", workers,
                          quota.calls_per_second, quota.burst));

  // 2000 calls a second is far more than the API allows: nobody has told us its quota. But whatever
  // shares this limiter also shares the pause that a Retry-After asks for.
  pyarallel::Limiter limiter(pyarallel::RateLimit{.count = 2000});
  const auto fetch = [&](int id) { return stage.api.get(fmt::format("/items/{}", id)); };
  const auto result = pyarallel::parallel_map(fetch, std::views::iota(0, items),
                                              {.workers = workers,
                                               .rate_limit = limiter,
                                               .retry = pyarallel::Retry::for_http({.attempts = 5}),
                                               .on_progress = pyarallel::ProgressBar{"calls"}});

  const demo::Ledger server = stage.measured_by_server();
  const double retry_after = seconds(quota.retry_after);
  const double clock_tolerance = 0.02;
  auto& receipts = stage.receipts;

  claim_every_item_succeeds(receipts, result);
  receipts.claim(server.refused > 0, "the pool does hit the quota", fmt::format("{} x 429", server.refused));
  receipts.claim(server.refused < workers, "what one worker is told, the others heed",
                 fmt::format("{} x 429 for {} workers", server.refused, workers));
  receipts.claim(server.longest_silence_after_refusal >= retry_after - clock_tolerance,
                 fmt::format("Retry-After: {:.0f} silences the whole pool for {:.0f} s", retry_after, retry_after),
                 fmt::format("{:.3f} s of silence", server.longest_silence_after_refusal));
}

void a_rate_limit_stays_below_the_quota(Stage& stage) {
  stage.begin("A rate limit makes the quota a non-event",
              fmt::format("The same job, told the quota: {} calls a second.", quota.calls_per_second));

  const auto fetch = [&](int id) { return stage.api.get(fmt::format("/items/{}", id)); };
  const auto result = pyarallel::parallel_map(
      fetch, std::views::iota(0, items),
      {.workers = workers, .rate_limit = quota.calls_per_second, .on_progress = pyarallel::ProgressBar{"calls"}});

  const demo::Ledger server = stage.measured_by_server();
  const double share = server.throughput() / quota.calls_per_second;
  auto& receipts = stage.receipts;

  claim_every_item_succeeds(receipts, result);
  receipts.claim(server.refused == 0 && server.requests == items, "no call is refused, none is repeated",
                 fmt::format("{} calls, {} refused", server.requests, server.refused));
  receipts.claim(share > 0.95 && share < 1.05, "throughput is within 5 % of the quota",
                 fmt::format("{:.2f} calls a second, {:.1f} %", server.throughput(), 100 * share));
}

void a_dead_endpoint_is_given_up(Stage& stage) {
  constexpr int many = 10'000;
  constexpr std::size_t error_limit = 10;
  stage.begin("A dead endpoint costs tens of calls, not thousands",
              fmt::format("{} items, all answered 500; max_errors = {}.", many, error_limit));
  const demo::Stopwatch stopwatch;

  const auto fetch = [&](int id) { return stage.api.get(fmt::format("/dead/{}", id)); };
  const auto result = pyarallel::parallel_map(
      fetch, std::views::iota(0, many),
      {.workers = workers, .max_errors = error_limit, .on_progress = pyarallel::ProgressBar{"calls"}});

  const double took = stopwatch.seconds();
  const demo::Ledger server = stage.measured_by_server();
  const std::size_t called = server.requests;
  const std::size_t answered_500 = failures_of_type<pyarallel::HttpError>(result);
  const std::size_t not_run = failures_of_type<pyarallel::Aborted>(result);
  // Nine errors are tolerated; the rest were under way, or next in line, when the tenth came.
  const std::size_t most_calls = error_limit - 1 + 2 * workers;
  auto& receipts = stage.receipts;

  receipts.claim(result.aborted() && !result.ok(), "the run ends early, and says so",
                 fmt::format("{} after {:.2f} s", result.status(), took));
  receipts.claim(called >= error_limit && called <= most_calls,
                 fmt::format("at most {} calls reach the server", most_calls), fmt::format("{} calls", called));
  receipts.claim(answered_500 == called, "each of those calls keeps its own error",
                 fmt::format("{} x HttpError", answered_500));
  receipts.claim(answered_500 + not_run == many, "every other item has Aborted in its place",
                 fmt::format("{} not run", not_run));
}

void a_missed_deadline_keeps_what_it_has(Stage& stage) {
  constexpr std::size_t many = 100;
  constexpr auto deadline = 600ms;
  stage.begin("A run that misses its deadline reports what it has",
              fmt::format("{} calls of 100 ms on 8 workers need 1.3 s; timeout = {} s.", many, seconds(deadline)));
  const demo::Stopwatch stopwatch;

  const auto fetch = [&](std::size_t id) { return stage.api.get(fmt::format("/slow/100/{}", id)); };
  const auto result =
      pyarallel::parallel_map(fetch, std::views::iota(std::size_t{0}, many),
                              {.workers = 8, .timeout = deadline, .on_progress = pyarallel::ProgressBar{"calls"}});

  const double took = stopwatch.seconds();
  const demo::Ledger server = stage.measured_by_server();
  const std::size_t have = result.successes().size();
  const std::size_t not_run = failures_of_type<pyarallel::TimeoutError>(result);
  auto& receipts = stage.receipts;

  // Calls under way are awaited, 0.1 s at most; the rest is for a busy machine.
  receipts.claim(result.timed_out() && !result.ok() && took < seconds(deadline) + 0.5,
                 "the run ends at the deadline, and says so", fmt::format("{} after {:.2f} s", result.status(), took));
  receipts.claim(have > 0 && have < many && have == server.requests, "every call that was made keeps its answer",
                 fmt::format("{} answers, {} calls", have, server.requests));
  receipts.claim(have + not_run == many, "every other item has a TimeoutError in its place",
                 fmt::format("{} not run", not_run));
  const auto refusal = refusal_to_give_part(result);
  receipts.claim(refusal && refusal->is<pyarallel::TimeoutError>(), "values() refuses to pass that off as the whole",
                 refusal ? refusal->type_name() : "no exception");
  if (refusal) receipts.quote(refusal->what());
}

void slow_calls_overlap(Stage& stage) {
  constexpr int many = 300;
  constexpr std::size_t callers = 100;
  constexpr double call_time = 0.3;
  stage.begin("Slow calls overlap",
              fmt::format("{} calls of {} s on {} workers: three call times.", many, call_time, callers));
  const demo::Stopwatch stopwatch;

  const auto fetch = [&](int id) { return stage.api.get(fmt::format("/slow/300/{}", id)); };
  const auto result = pyarallel::parallel_map(fetch, std::views::iota(0, many),
                                              {.workers = callers, .on_progress = pyarallel::ProgressBar{"calls"}});

  const double took = stopwatch.seconds();
  const demo::Ledger server = stage.measured_by_server();
  const double ideal = call_time * many / callers;
  auto& receipts = stage.receipts;

  claim_every_item_succeeds(receipts, result);
  receipts.claim(server.most_at_once <= callers, "never more calls at once than workers",
                 fmt::format("{} at once, at most", server.most_at_once));
  receipts.claim(took < 2 * ideal, fmt::format("well under twice the ideal {:.1f} s", ideal),
                 fmt::format("{:.2f} s; one after another: {:.0f} s", took, call_time * many));
}

#if __has_include(<sqlite3.h>)

using Answered = std::function<void(const pyarallel::ItemResult<std::string>&)>;

std::string paid_call(int id) { return fmt::format("/slow/50/{}", id); }

// The same job each time, whoever runs it.
pyarallel::MapResult<std::string> run_checkpointed(demo::ApiClient& api, int many,
                                                   const std::filesystem::path& checkpoint, Answered answered,
                                                   pyarallel::OnProgress progress = {}) {
  return pyarallel::parallel_map([&](int id) { return api.get(paid_call(id)); }, std::views::iota(0, many),
                                 {.workers = workers,
                                  .checkpoint = pyarallel::sqlite_checkpoint(checkpoint, {.version = "1"}),
                                  .on_result = std::move(answered),
                                  .on_progress = std::move(progress)});
}

void a_killed_job_pays_no_call_twice(Stage& stage) {
  constexpr int many = 300;
  constexpr std::size_t enough = many / 3;
  stage.begin(
      "A job that is killed goes on where it was",
      fmt::format("{} paid calls with a checkpoint; kill -9 after a third of them, then the same again.", many));
  const demo::TemporaryFolder folder;
  const auto checkpoint = folder.path() / "job.ckpt";

  // The first run has a process of its own, which says here what it was told in on_result.
  demo::Pipe report;
  demo::ChildProcess first([&] {
    report.read_end.close();
    demo::ApiClient api(stage.api.port());  // with connections of its own
    run_checkpointed(api, many, checkpoint, [&](const auto& item) {
      if (!report.send(item.index)) throw std::runtime_error("nobody listens any more");
    });
  });
  report.write_end.close();
  std::set<std::size_t> reported;
  std::size_t index = 0;
  while (reported.size() < enough && report.receive(index)) reported.insert(index);
  const bool killed = first.kill();
  while (report.receive(index)) reported.insert(index);  // until it died

  std::set<std::size_t> stored;
  const auto result = run_checkpointed(
      stage.api, many, checkpoint,
      [&](const auto& item) {
        if (item.attempts == 0) stored.insert(item.index);
      },
      pyarallel::ProgressBar{"calls"});

  const demo::Ledger server = stage.measured_by_server();
  const auto called_once = static_cast<std::size_t>(std::ranges::count_if(
      reported, [&](std::size_t id) { return server.calls_of(paid_call(static_cast<int>(id))) == 1; }));
  // What the job had begun and not reported when it died: at most its window.
  const std::size_t most_in_flight = 2 * workers;
  auto& receipts = stage.receipts;

  receipts.claim(
      killed && reported.size() >= enough && reported.size() < many, "the job dies in full flight",
      fmt::format("{} after {} of {} answers", killed ? "SIGKILL" : "ended by itself", reported.size(), many));
  claim_every_item_succeeds(receipts, result);
  receipts.claim(std::ranges::includes(stored, reported), "every answer that was reported was stored before",
                 fmt::format("{} reported, {} taken from the file", reported.size(), stored.size()));
  receipts.claim(called_once == reported.size(), "the server is not asked for any of these again",
                 fmt::format("{} of {} asked for once", called_once, reported.size()));
  receipts.claim(server.requests <= many + most_in_flight,
                 fmt::format("paid twice: only what was in flight, at most {} calls", most_in_flight),
                 fmt::format("{} calls for {} items: {} twice", server.requests, many, server.repeated()));
}

#endif

int run() {
  const demo::FakeApi server(quota);  // forks, so it comes before anything that starts a thread
  const auto started = demo::Clock::now();
  Stage stage{.api = demo::ApiClient(server.port()), .receipts = {}};
  fmt::print("A metered API on http://127.0.0.1:{}, process {}.\n", server.port(), server.process_id());

  one_refusal_pauses_the_pool(stage);
  a_rate_limit_stays_below_the_quota(stage);
  a_dead_endpoint_is_given_up(stage);
  a_missed_deadline_keeps_what_it_has(stage);
  slow_calls_overlap(stage);
#if __has_include(<sqlite3.h>)
  a_killed_job_pays_no_call_twice(stage);
#endif
  return stage.receipts.verdict(seconds(demo::Clock::now() - started));
}

}  // namespace

int main() {
  // A connection that breaks should be an error of its call, not the end of the program.
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return run();
  } catch (const std::exception& error) {
    std::fflush(stdout);
    fmt::print(stderr, "\nThe demo could not go on: {}\n", error.what());
    fmt::print(stderr,
               "It needs the loopback interface 127.0.0.1, about 300 file descriptors (ulimit -n) and\n"
               "300 threads (ulimit -u). If it has those and fails again, please report the lines above.\n");
    return 2;
  }
}
