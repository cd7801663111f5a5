// Maps over the ranks of a real MPI job: cluster_test SCENARIO threads|processes FOLDER, started by mpirun. Rank 0 says
// `passed` when all was as it should be. Without arguments it lists the scenarios, one in a line:
// NAME KIND RANKS passes|fails [TEXT]. RANKS 0: without mpirun; fails: the job must end with an error, and say TEXT.
#include <fcntl.h>
#include <fmt/core.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <numeric>
#include <pyarallel.hpp>
#include <pyarallel/checkpoint.hpp>
#include <pyarallel/mpi.hpp>
#include <ranges>
#include <set>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

using namespace pyarallel;
using namespace std::chrono_literals;
using mpi::Cluster;

namespace {

// Checks --------------------------------------------------------------------------------------------

[[noreturn]] void fail(const std::string& what, const std::source_location& where) {
  fmt::print(stderr, "cluster_test.cpp:{}: {}\n", where.line(), what);
  std::_Exit(1);  // the launcher ends the rest
}

void expect(bool condition, const std::string& what, std::source_location where = std::source_location::current()) {
  if (!condition) fail("expected: " + what, where);
}

template <class A, class B>
void expect_equal(const A& got, const B& expected, const std::string& what,
                  std::source_location where = std::source_location::current()) {
  if (got == expected) return;
  std::ostringstream text;
  text << what;
  if constexpr (requires { text << got << expected; }) text << ": expected " << expected << ", got " << got;
  fail(text.str(), where);
}

/// What `call` throws, which must be an E.
template <class E, class Call>
std::string thrown(const Call& call, std::source_location where = std::source_location::current()) {
  try {
    call();
  } catch (const E& e) {
    return e.what();
  } catch (const std::exception& e) {
    fail(fmt::format("another exception was expected than: {}", e.what()), where);
  }
  fail("an exception was expected", where);
}

bool has(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

// What ranks tell each other by files --------------------------------------------------------------------

void make(const std::filesystem::path& path) { std::ofstream{path}.flush(); }

/// On a rank: std::runtime_error, and so a failed item, if it never comes.
void wait_for(const std::filesystem::path& path) {
  for (const auto end = std::chrono::steady_clock::now() + 30s; std::chrono::steady_clock::now() < end;) {
    if (std::filesystem::exists(path)) return;
    std::this_thread::sleep_for(1ms);
  }
  throw std::runtime_error("waited in vain for " + path.string());
}

/// A list of numbers that all ranks add to.
class Journal {
 public:
  explicit Journal(std::filesystem::path path) : path_(std::move(path)) {}

  void add(std::int64_t number) const {
    const int file = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    const bool added = ::write(file, &number, sizeof number) == sizeof number;
    ::close(file);
    if (!added) throw std::system_error(errno, std::generic_category(), path_);
  }
  std::vector<std::int64_t> numbers() const {
    std::ifstream file{path_, std::ios::binary};
    std::vector<std::int64_t> all;
    for (std::int64_t number = 0; file.read(reinterpret_cast<char*>(&number), sizeof number);) all.push_back(number);
    return all;
  }

 private:
  std::filesystem::path path_;
};

std::int64_t now_ns() { return std::chrono::nanoseconds{std::chrono::steady_clock::now().time_since_epoch()}.count(); }

// Processor time ------------------------------------------------------------------------------------------

/// Of a process and its parents, as far as they run this program: in seconds.
double cpu_seconds(pid_t pid) {
  double seconds = 0;
  for (std::string program; pid > 1;) {
    std::ifstream file{fmt::format("/proc/{}/stat", pid)};
    std::string text{std::istreambuf_iterator<char>{file}, {}};
    const std::size_t behind_name = text.rfind(')');
    if (behind_name == text.npos) break;
    const std::string name = text.substr(0, behind_name).substr(text.find('('));
    if (program.empty()) program = name;
    if (name != program) break;
    std::istringstream rest{text.substr(behind_name + 2)};
    std::vector<std::string> fields{std::istream_iterator<std::string>{rest}, {}};
    seconds += (std::stod(fields[11]) + std::stod(fields[12])) / static_cast<double>(::sysconf(_SC_CLK_TCK));
    pid = static_cast<pid_t>(std::stol(fields[1]));
  }
  return seconds;
}

// Scenarios -------------------------------------------------------------------------------------------

struct Job {
  int& argc;
  char**& argv;
  mpi::ClusterOptions options;
  std::filesystem::path folder;  // empty at first, and the same on all ranks

  bool processes() const { return options.processes_per_rank > 0; }
};

constexpr std::size_t workers_per_rank = 2;

std::vector<int> numbers(int count) {
  std::vector<int> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

int square(int x) { return x * x; }

// Each returns true on the rank that has checked everything, and false on others.

bool maps(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  const auto text = [](const std::pair<int, std::string>& item) { return item.second + std::to_string(item.first); };
  const auto nothing = [](const std::vector<double>&) {};
  if (cluster.serve(square, text, nothing)) return false;

  expect_equal(cluster.rank(), 0, "rank");
  expect_equal(cluster.size(), 3, "size");
  expect_equal(cluster.slots(), 2 * workers_per_rank, "slots of two ranks");
  expect(!cluster.is_local(), "rank 0 does not work alone");

  const auto items = numbers(10'000);
  const auto squares = parallel_map(square, items, {.executor = cluster});
  expect(squares.ok(), "a map without failures is ok");
  expect_equal(squares.size(), items.size(), "results");
  for (const int x : items) expect_equal(squares[static_cast<std::size_t>(x)], x * x, "a square");

  std::map<int, std::string> words;
  for (const int x : numbers(500)) words.emplace(x, std::string(static_cast<std::size_t>(x), 'x'));
  const auto texts = parallel_map(text, words, {.executor = cluster, .retry = Retry{}});
  for (const auto& [x, word] : words) {
    expect_equal(texts[static_cast<std::size_t>(x)], word + std::to_string(x), "a text");
  }
  for (const auto& item : texts.item_results()) expect_equal(item.attempts, 1, "attempts");

  const std::vector<std::vector<double>> vectors(20, std::vector<double>(10));
  expect_equal(parallel_map(nothing, vectors, {.executor = cluster}).values().size(), 20U, "results of void");
  return true;
}

bool captures_of_each_rank(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  int mine = cluster.rank();
  int calls = 0;
  const auto who = [&, folder = job.folder](int) {
    ++calls;
    make(folder / std::to_string(mine));
    for (const char* const rank : {"101", "102"}) wait_for(folder / rank);  // both have an item at a time
    return mine;
  };
  mine += 100;
  if (cluster.serve(who)) return false;
  mine = 0;

  const auto result = parallel_map(who, numbers(2), {.workers = 2, .executor = cluster});
  const std::vector<int> ranks{result.values().begin(), result.values().end()};
  expect_equal(std::set<int>(ranks.begin(), ranks.end()), std::set<int>{101, 102}, "each rank has its own captures");
  expect_equal(calls, 0, "calls at rank 0");
  return true;
}

bool more_ranks_than_items(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  if (cluster.serve(square)) return false;
  for (int count = 1; count <= 3; ++count) {
    const auto result = parallel_map(square, numbers(count), {.executor = cluster});
    for (int x = 0; x < count; ++x) expect_equal(result[static_cast<std::size_t>(x)], x * x, "a square");
  }
  return true;
}

bool empty_input(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  if (cluster.serve(square)) return false;
  for (int i = 0; i < 3; ++i) {
    const auto result = parallel_map(square, std::vector<int>{}, {.executor = cluster});
    expect(result.ok() && result.empty(), "an empty, completed, ok() result");
    for (const auto& item : parallel_iter(square, std::vector<int>{}, {.executor = cluster})) {
      fail(fmt::format("item {} of an empty stream", item.index), std::source_location::current());
    }
  }
  expect_equal(parallel_map(square, numbers(3), {.executor = cluster})[2], 4, "a map after that");
  return true;
}

bool no_map_at_all(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  return !cluster.serve(square);
}

bool several_maps_in_a_row(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  const auto negative = [](std::int64_t x) { return -x; };
  if (cluster.serve(square, negative)) return false;
  for (int i = 0; i < 50; ++i) {
    const auto squares = parallel_map(square, numbers(i), {.executor = cluster});
    expect_equal(squares.values().size(), static_cast<std::size_t>(i), "squares");
    const auto negatives = parallel_map(negative, std::views::iota(std::int64_t{0}, std::int64_t{i + 1}),
                                        {.executor = cluster, .batch = Batch{.size = 3}});
    expect_equal(negatives[static_cast<std::size_t>(i)], -i, "the last");
  }
  return true;
}

bool two_threads(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  const auto negative = [](int x) { return -x; };
  if (cluster.serve(square, negative)) return false;
  const auto many = [&cluster](auto& fn) {
    for (int i = 1; i <= 20; ++i) {
      const auto result = parallel_map(fn, numbers(i * 10), {.executor = cluster});
      for (int x = 0; x < i * 10; ++x) expect_equal(result[static_cast<std::size_t>(x)], fn(x), "a result");
    }
  };
  std::jthread one{[&] { many(square); }};
  std::jthread other{[&] { many(negative); }};
  return true;
}

bool streams(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  if (cluster.serve(square)) return false;
  int sum = 0;
  for (auto& item : parallel_iter(square, numbers(300), {.executor = cluster})) sum += item.value();
  expect_equal(sum, 299 * 300 * 599 / 6, "sum of squares");

  std::size_t next = 0;
  auto ordered = parallel_iter(square, std::views::iota(0), {.executor = cluster, .ordered = true});
  for (auto& item : ordered) {
    expect_equal(item.index, next++, "in input order");
    if (next == 200) break;
  }
  const auto message = thrown<std::logic_error>([&] { parallel_map(square, numbers(2), {.executor = cluster}); });
  expect(has(message, "stream"), "a message that names the open stream");
  { const auto ended = std::move(ordered); }
  expect_equal(parallel_map(square, numbers(3), {.executor = cluster})[2], 4, "a map after that");
  return true;
}

bool starmap(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  const auto repeat = parallel([](const std::string& word, int times, const Task& task) {
    std::string all;
    for (int i = 0; i < times; ++i) all += word;
    return std::to_string(task.index) + all;
  });
  if (cluster.serve(repeat)) return false;
  const std::vector<std::tuple<std::string, int>> items{{"a", 3}, {"bc", 2}, {"d", 0}};
  const auto result = repeat.starmap(items, {.executor = cluster});
  expect_equal(result[0], "0aaa", "repeated");
  expect_equal(result[1], "1bcbc", "repeated");
  expect_equal(result[2], "2", "repeated");
  return true;
}

bool nested_maps(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  const auto outer = [&](int x) {
    const auto inner = [x](int y) { return x * y; };  // not served: it runs where it is called
    int sum = 0;
    for (const int product : parallel_map(inner, numbers(20), {.executor = cluster}).values()) sum += product;
    for (const int product : parallel_map(inner, numbers(20), {.workers = 3}).values()) sum += product;
    return sum;
  };
  if (cluster.serve(outer)) return false;
  const auto result = parallel_map(outer, numbers(20), {.executor = cluster});
  for (int x = 0; x < 20; ++x) expect_equal(result[static_cast<std::size_t>(x)], 380 * x, "a sum of products");
  return true;
}

bool source_or_callback_throws(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  if (cluster.serve(square)) return false;

  auto items = std::views::iota(0) | std::views::transform([](int x) {
                 if (x == 50) throw std::domain_error("item 50 cannot be read");
                 return x;
               });
  const auto from_source = thrown<std::domain_error>([&] { parallel_map(square, items, {.executor = cluster}); });
  expect_equal(from_source, "item 50 cannot be read", "what the source throws");

  const auto from_stream = thrown<std::domain_error>([&] {
    for (auto& item : parallel_iter(square, items, {.executor = cluster})) expect(item.ok(), "an ok item");
  });
  expect_equal(from_stream, "item 50 cannot be read", "what the source of a stream throws");

  const auto from_callback = thrown<std::range_error>([&] {
    parallel_map(square, std::views::iota(0), {.executor = cluster, .on_result = [](const ItemResult<int>& item) {
                                                 if (item.index == 20) throw std::range_error("enough");
                                               }});
  });
  expect_equal(from_callback, "enough", "what the callback throws");

  expect_equal(parallel_map(square, numbers(3), {.executor = cluster})[2], 4, "a map after that");
  return true;
}

bool throws_something_strange(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  const auto strange = [](int x) {
    if (x == 1) throw 42;
    if (x == 2) throw std::out_of_range("two");
    if (x == 3) throw HttpError(503, "7", "busy");
    return x;
  };
  if (cluster.serve(strange)) return false;
  const auto result = parallel_map(strange, numbers(10), {.executor = cluster});
  expect_equal(result.failures().size(), 3U, "failures");
  expect_equal(result.ok_values().size(), 7U, "values");
  const auto* const remote = result.failures()[0].error.get_if<RemoteError>();
  expect(remote != nullptr && remote->type_name() == "int", "a RemoteError of an int");
  expect(result.failures()[1].error.is<std::out_of_range>(), "std::out_of_range keeps its type");
  const auto* const http = result.failures()[2].error.get_if<HttpError>();
  expect(http != nullptr && http->status() == 503 && http->retry_after() == "7", "HttpError keeps all it says");
  return true;
}

bool ends_early(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  const auto slowly = [](int x) {
    std::this_thread::sleep_for(1ms);
    return x;
  };
  const auto bad = [](int x) -> int { throw std::runtime_error(std::to_string(x)); };
  const auto patient = [](int x, const Task& task) {
    while (x == 3 && !task.stop.stop_requested()) std::this_thread::sleep_for(1ms);
    return x;
  };
  if (cluster.serve(slowly, bad, patient)) return false;

  std::stop_source stop;
  const auto cancelled = parallel_map(
      slowly, std::views::iota(0), {.executor = cluster, .stop = stop.get_token(), .on_result = [&](const auto& item) {
                                      if (item.index == 10) stop.request_stop();
                                    }});
  expect(cancelled.cancelled() && !cancelled.ok(), "cancelled");
  thrown<Cancelled>([&] { cancelled.values(); });

  constexpr std::size_t window = 8;
  const auto aborted =
      parallel_map(bad, std::views::iota(0), {.executor = cluster, .batch = Batch{.size = window}, .max_errors = 3});
  expect(aborted.aborted(), "aborted");
  const auto really_failed =
      std::ranges::count_if(aborted.failures(), [](const Failure& failure) { return !failure.error.is<Aborted>(); });
  expect(really_failed >= 3 && really_failed <= 2 + static_cast<int>(window), "at most n - 1 + window items fail");

  const auto timed_out = parallel_map(patient, std::views::iota(0), {.executor = cluster, .timeout = 300ms});
  expect(timed_out.timed_out(), "timed out");
  thrown<TimeoutError>([&] { timed_out.values(); });

  const auto none = parallel_map(slowly, numbers(5), {.executor = cluster, .timeout = 0s});
  expect(none.timed_out() && none.successes().empty(), "timeout = 0 runs nothing");

  const auto tasks = parallel_map(patient, numbers(10), {.executor = cluster, .task_timeout = 1s});
  expect(tasks.complete(), "complete");
  expect_equal(tasks.failures().size(), 1U, "tasks that took too long");
  expect(tasks.failures()[0].index == 3 && tasks.failures()[0].error.is<TaskTimeout>(), "TaskTimeout of item 3");

  expect_equal(parallel_map(slowly, numbers(5), {.executor = cluster})[4], 4, "a map after that");
  return true;
}

bool crashes_cost_one_item(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  const auto crash = [](int x) {
    if (x == 10) std::exit(3);
    if (x == 20) std::abort();
    if (x == 30) ::raise(SIGKILL);
    if (x == 40) ::_exit(4);
    return x;
  };
  if (cluster.serve(crash)) return false;
  for (int round = 0; round < 2; ++round) {
    const auto result = parallel_map(crash, numbers(100), {.executor = cluster});
    expect(result.complete(), "complete");
    expect_equal(result.failures().size(), 4U, "failures");
    expect_equal(result.ok_values().size(), 96U, "values");
    const auto crashed = [&](int x) {
      const auto* const error = result.failures()[static_cast<std::size_t>(x / 10 - 1)].error.get_if<WorkerCrashed>();
      expect(error != nullptr, "WorkerCrashed");
      return *error;
    };
    expect_equal(crashed(10).exit_code(), 3, "exit code of exit()");
    expect_equal(crashed(20).signal(), SIGABRT, "signal of abort()");
    expect_equal(crashed(30).signal(), SIGKILL, "signal");
    expect_equal(crashed(40).exit_code(), 4, "exit code of _exit()");
  }
  const auto again =
      parallel_map(crash, numbers(11), {.executor = cluster, .retry = Retry{.attempts = 2, .backoff = 0s}});
  expect_equal(again.item_results()[10].attempts, 2, "attempts at what crashes");
  return true;
}

bool exit_in_a_thread(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  const auto leave = [](int x) {
    if (x == 10) {
      fmt::print(stderr, "fn calls exit\n");
      std::exit(0);
    }
    return x;
  };
  if (cluster.serve(leave)) return false;
  parallel_map(leave, numbers(100), {.executor = cluster});
  return true;
}

bool slow_rank(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  const auto fn = [&, folder = job.folder](int) {
    if (cluster.rank() == 1) wait_for(folder / "rest");
    return cluster.rank();
  };
  if (cluster.serve(fn)) return false;
  // Rank 1 keeps as many items as it has workers until all others have come.
  constexpr int count = 2'000;
  int done = 0;
  const auto result = parallel_map(fn, numbers(count), {.executor = cluster, .on_result = [&](const auto&) {
                                                          if (++done == count - static_cast<int>(workers_per_rank)) {
                                                            make(job.folder / "rest");
                                                          }
                                                        }});
  expect_equal(std::ranges::count(result.values(), 1), static_cast<int>(workers_per_rank), "items of the slow rank");
  expect_equal(std::ranges::count(result.values(), 2), count - static_cast<int>(workers_per_rank),
               "items of the other");
  return true;
}

bool large_items_and_results(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  const auto shift = [](const std::string& text) {
    std::string result = text;
    for (char& c : result) ++c;
    return result;
  };
  if (cluster.serve(shift)) return false;
  constexpr std::size_t large = std::size_t{24} << 20;
  std::vector<std::string> items;
  for (std::size_t i = 0; i < 8; ++i) {
    std::string text(large + i, 'a');
    text[large / 2 + i] = static_cast<char>('b' + i);
    items.push_back(std::move(text));
  }
  const auto result = parallel_map(shift, items, {.executor = cluster});
  for (std::size_t i = 0; i < items.size(); ++i) {
    expect(result[i] == shift(items[i]), "shifted");
  }
  return true;
}

bool rate_limit(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  const Journal journal{job.folder / "starts"};
  const auto fn = [&](int x, const Task& task) {
    journal.add(now_ns());
    if (x % 4 == 0 && task.attempt == 1) throw std::runtime_error("again");
    return x;
  };
  if (cluster.serve(fn)) return false;
  constexpr double rate = 400;
  constexpr int burst = 5;
  const std::int64_t begin = now_ns();
  const auto result = parallel_map(fn, numbers(400),
                                   {.executor = cluster,
                                    .rate_limit = RateLimit{.count = rate, .burst = burst},
                                    .retry = Retry{.attempts = 2, .backoff = 0s}});
  const double took = static_cast<double>(now_ns() - begin) * 1e-9;
  expect(result.ok(), "ok");
  auto starts = journal.numbers();
  expect_equal(starts.size(), 500U, "starts, those of retries included");
  std::ranges::sort(starts);
  // Clause L1: in any window that begins with the call.
  for (std::size_t i = 0; i < starts.size(); ++i) {
    const double at = static_cast<double>(starts[i] - begin) * 1e-9;
    const double most = burst + rate * at;
    if (static_cast<double>(i + 1) > most) {
      fail(fmt::format("expected at most {} starts after {} s, got {}", most, at, i + 1),
           std::source_location::current());
    }
  }
  expect(took < 10 * 500 / rate, fmt::format("less than ten times as long as the rate needs, took {} s", took));
  return true;
}

bool not_served(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  const int offset = cluster.rank();
  const auto known = [&offset](int x) { return x + offset; };
  const auto copy = known;
  thrown<std::invalid_argument>([&] { parallel_map(known, numbers(3), {.executor = cluster}); });
  if (cluster.serve(known)) return false;
  const auto map = [&](const auto& fn) {
    return thrown<std::invalid_argument>([&] { parallel_map(fn, numbers(3), {.executor = cluster}); });
  };
  expect(has(map(square), "was not served"), "a message about a function");
  expect(has(map(copy), "was not served"), "a message about a copy of what was served");
  thrown<std::logic_error>([&] { cluster.serve(known); });
  expect_equal(parallel_map(known, numbers(300), {.executor = cluster}).values().size(), 300U, "a map after that");
  return true;
}

bool threads_and_processes(Job& job) {
  job.options.threads_per_rank = 1;
  const auto message = thrown<std::invalid_argument>([&] { Cluster{job.argc, job.argv, job.options}; });
  expect(has(message, "not both, got 1 and 2"), "both refused");
  return true;
}

/// A cluster whose rank 1 serves the functions in another order.
bool serve_in_other_order(Cluster& cluster) {
  static const auto negative = [](int x) { return -x; };
  return cluster.rank() == 1 ? cluster.serve(negative, square) : cluster.serve(square, negative);
}

bool other_functions_caught(Job& job) {
  try {
    Cluster cluster{job.argc, job.argv, job.options};
    if (serve_in_other_order(cluster)) return false;
  } catch (const std::runtime_error& e) {
    fmt::print(stderr, "{}\n", e.what());
    std::exit(1);
  }
  fail("expected: refused", std::source_location::current());
}

bool other_functions(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  if (serve_in_other_order(cluster)) return false;
  fail("expected: refused", std::source_location::current());
}

/// `run` starts it together with another program, which was compiled with ANOTHER_BUILD.
bool another_build(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
#ifdef ANOTHER_BUILD
  const auto next = [](int x) { return x + 2; };
#else
  const auto next = [](int x) { return x + 1; };
#endif
  if (cluster.serve(next)) return false;
  parallel_map(next, numbers(10), {.executor = cluster});
  fail("expected: refused", std::source_location::current());
}

bool exception_leaves_main(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  if (cluster.serve(square)) return false;
  auto stream = parallel_iter(square, std::views::iota(0), {.executor = cluster});
  expect_equal(stream.begin()->ok(), true, "a stream that goes on");
  throw std::logic_error("nobody catches this");
}

bool exception_passes_the_cluster(Job& job) {
  try {
    exception_leaves_main(job);
  } catch (const std::logic_error& e) {
    fmt::print(stderr, "caught: {}\n", e.what());
    std::exit(1);
  }
  return false;
}

bool rank_0_exits(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  if (cluster.serve(square)) return false;
  expect_equal(parallel_map(square, numbers(3), {.executor = cluster})[2], 4, "a map");
  fmt::print(stderr, "rank 0 calls exit\n");
  std::exit(5);
}

bool worker_init_throws(Job& job) {
  job.options.worker_init = [] { throw std::domain_error("no GPU here"); };
  Cluster cluster{job.argc, job.argv, job.options};
  if (cluster.serve(square)) return false;
  for (int round = 0; round < 2; ++round) {
    const auto message = thrown<std::domain_error>([&] { parallel_map(square, numbers(100), {.executor = cluster}); });
    expect_equal(message, "no GPU here", "what worker_init throws");
  }
  return true;
}

void expect_mpi_works(MPI_Comm communicator) {
  int finalized = 1;
  MPI_Finalized(&finalized);
  expect_equal(finalized, 0, "MPI is not finalised");
  int one = 1;
  int sum = 0;
  int size = 0;
  MPI_Comm_size(communicator, &size);
  MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM, communicator);
  expect_equal(sum, size, "ranks that take part in what comes after");
}

bool clusters_on_communicators(Job& job, int thread_level) {
  int provided = 0;
  MPI_Init_thread(&job.argc, &job.argv, thread_level, &provided);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (job.processes()) {
    const auto message = thrown<std::invalid_argument>([&] { Cluster{MPI_COMM_WORLD, job.options}; });
    expect(has(message, "fork_after_mpi_init"), "a message that names the way out");
    job.options.fork_after_mpi_init = true;
  }
  // Two halves, each with a cluster, whose rank 0 is the last of them.
  MPI_Comm half = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &half);
  bool checked = false;
  for (int round = 1; round <= 2; ++round) {
    Cluster cluster{half, job.options};
    expect_equal(cluster.rank(), rank >= 2 ? 0 : 1, "rank in a half");
    const auto where = [&](int x) { return x * 10 + cluster.rank(); };
    if (!cluster.serve(where)) {
      const auto result = parallel_map(where, numbers(100 * round), {.executor = cluster});
      for (int x = 0; x < 100 * round; ++x) expect_equal(result[static_cast<std::size_t>(x)], x * 10 + 1, "a result");
      checked = true;
    }
  }
  expect_equal(checked, rank >= 2, "a cluster's rank 0");
  expect_mpi_works(half);
  {
    Cluster cluster{MPI_COMM_WORLD, job.options};
    if (!cluster.serve(square)) {
      expect_equal(cluster.slots(), 3 * workers_per_rank, "slots");
      expect_equal(parallel_map(square, numbers(100), {.executor = cluster})[99], 9801, "a square");
    }
  }
  expect_mpi_works(MPI_COMM_WORLD);
  MPI_Comm_free(&half);
  MPI_Finalize();
  return rank == 0;
}

bool communicator_of_the_program(Job& job) { return clusters_on_communicators(job, MPI_THREAD_SERIALIZED); }
bool communicator_of_one_thread(Job& job) { return clusters_on_communicators(job, MPI_THREAD_FUNNELED); }

bool one_process(Job& job) {
  const auto initialized = [] {
    int flag = 1;
    MPI_Initialized(&flag);
    return flag;
  };
  {
    Cluster cluster{job.argc, job.argv, job.options};
    const auto where = [](int) { return ::getpid(); };
    if (cluster.serve(where)) return false;
    expect_equal(cluster.rank(), 0, "rank");
    expect_equal(cluster.size(), 1, "size");
    expect(cluster.is_local(), "it works here");
    expect_equal(cluster.slots(), workers_per_rank, "slots");
    const auto result = parallel_map(where, numbers(20), {.executor = cluster});
    for (const pid_t pid : result.values())
      expect_equal(pid == ::getpid(), !job.processes(), "items run in this process");
    int seen = 0;
    for (auto& item : parallel_iter(where, numbers(5), {.executor = cluster})) seen += item.ok() ? 1 : 0;
    expect_equal(seen, 5, "items of a stream");
    expect_equal(initialized(), 0, "MPI_Initialized");
  }
  expect_equal(initialized(), 0, "MPI_Initialized after the cluster's end");
  return true;
}

bool idle_ranks_sleep(Job& job) {
  Cluster cluster{job.argc, job.argv, job.options};
  const auto fn = [](int x) {
    if (x == 1) std::this_thread::sleep_for(2s);
    return cpu_seconds(::getpid());
  };
  if (cluster.serve(fn)) return false;
  constexpr double most = 0.15;         // in 2 s
  constexpr double most_of_rank = 0.3;  // its helper included
  const auto of_ranks = [&] {
    const auto result = parallel_map(fn, std::vector<int>(2), {.workers = 2, .executor = cluster});
    return std::array{result[0], result[1]};
  };
  const auto expect_little = [&](const char* when, const auto& before, const auto& after) {
    for (std::size_t i = 0; i < 2; ++i) {
      const double spent = after[i] - before[i];
      fmt::print("rank {} {}: {:.2f} s of CPU\n", i + 1, when, spent);
      expect(spent < most_of_rank,
             fmt::format("rank {} {}: less than {} s of CPU, got {}", i + 1, when, most_of_rank, spent));
    }
  };
  const auto before = of_ranks();
  const double here = cpu_seconds(::getpid());
  parallel_map(fn, std::vector{1, 0}, {.workers = 2, .executor = cluster});  // rank 1 sleeps in it, rank 2 has nothing
  const double spent = cpu_seconds(::getpid()) - here;
  fmt::print("rank 0 waiting for an item: {:.2f} s of CPU\n", spent);
  expect(spent < most, fmt::format("rank 0 waiting for an item: less than {} s of CPU, got {}", most, spent));
  const auto between = of_ranks();
  expect_little("while rank 1 works", before, between);
  std::this_thread::sleep_for(2s);
  expect_little("between two maps", between, of_ranks());
  return true;
}

/// `run` and `hosts` kill a rank in the middle of it, and start it again: then it goes on where it was.
bool goes_on(Job& job) {
  constexpr std::int64_t count = 1'000;
  Cluster cluster{job.argc, job.argv, job.options};
  std::ofstream{job.folder / fmt::format("pid.{}", cluster.rank())} << ::getpid() << '\n';
  const Journal journal{job.folder / "runs"};
  const auto fn = [&](std::int64_t x) {
    std::this_thread::sleep_for(5ms);
    journal.add(x);
    return x * x % 1009;
  };
  if (cluster.serve(fn)) return false;
  const std::size_t before = journal.numbers().size();
  std::int64_t found = 0;
  const auto result = parallel_map(fn, std::views::iota(std::int64_t{0}, count),
                                   {.executor = cluster,
                                    .checkpoint = sqlite_checkpoint(job.folder / "checkpoint"),
                                    .on_result = [&](const auto& item) { found += item.attempts == 0 ? 1 : 0; }});
  std::vector<std::int64_t> expected;
  for (std::int64_t x = 0; x < count; ++x) expected.push_back(x * x % 1009);
  expect(std::ranges::equal(result.values(), expected), "the same results as one after the other");
  const auto ran = static_cast<std::int64_t>(journal.numbers().size() - before);
  expect_equal(found + ran, count, "items that were found, and those that ran");
  if (before > 0) expect(found > 0 && ran > 0, "goes on in the middle");
  fmt::print("{} of {} items were found in the checkpoint, {} ran\n", found, count, ran);
  return true;
}

// All of them -------------------------------------------------------------------------------------------

struct Scenario {
  std::string_view name;
  bool (*run)(Job&);
  int ranks = 3;
  std::string_view fails_with = {};
  bool with_threads = true;
  bool with_processes = true;
};

constexpr Scenario scenarios[] = {
    {"maps", maps},
    {"captures_of_each_rank", captures_of_each_rank},
    {"more_ranks_than_items", more_ranks_than_items, 5},
    {"empty_input", empty_input},
    {"no_map_at_all", no_map_at_all},
    {"several_maps_in_a_row", several_maps_in_a_row},
    {"two_threads", two_threads},
    {"streams", streams},
    {"starmap", starmap},
    {"nested_maps", nested_maps},
    {"source_or_callback_throws", source_or_callback_throws},
    {"throws_something_strange", throws_something_strange},
    {"ends_early", ends_early},
    {.name = "crashes_cost_one_item", .run = crashes_cost_one_item, .with_threads = false},
    {.name = "exit_in_a_thread",
     .run = exit_in_a_thread,
     .fails_with = "has called exit() while it runs items",
     .with_processes = false},
    {"slow_rank", slow_rank},
    {"large_items_and_results", large_items_and_results},
    {"rate_limit", rate_limit},
    {"not_served", not_served},
    {.name = "threads_and_processes", .run = threads_and_processes, .ranks = 0, .with_threads = false},
    {"worker_init_throws", worker_init_throws},
    {"other_functions", other_functions, 3, "serves other functions"},
    {"other_functions_caught", other_functions_caught, 3, "serves other functions"},
    {"another_build", another_build, 3, "runs another build of the program"},
    {"exception_leaves_main", exception_leaves_main, 3, "nobody catches this"},
    {"exception_passes_the_cluster", exception_passes_the_cluster, 3, "caught: nobody catches this"},
    {"rank_0_exits", rank_0_exits, 3, "rank 0 calls exit"},
    {"communicator_of_the_program", communicator_of_the_program, 4},
    {"communicator_of_one_thread", communicator_of_one_thread, 4},
    {"one_process", one_process, 0},
    {"one_process", one_process, 1},
    {"idle_ranks_sleep", idle_ranks_sleep},
    {"goes_on", goes_on},
};

int list() {
  for (const Scenario& scenario : scenarios) {
    const std::string ending = scenario.fails_with.empty() ? "passes" : fmt::format("fails {}", scenario.fails_with);
    for (const auto& [kind, wanted] :
         {std::pair{"threads", scenario.with_threads}, {"processes", scenario.with_processes}}) {
      if (wanted) fmt::print("{} {} {} {}\n", scenario.name, kind, scenario.ranks, ending);
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) return list();
  const auto scenario = std::ranges::find(scenarios, argv[1], &Scenario::name);
  if (argc != 4 || scenario == std::end(scenarios)) {
    fmt::print(stderr, "cluster_test SCENARIO threads|processes FOLDER\n");
    return 2;
  }
  Job job{argc, argv, {}, argv[3]};
  if (argv[2] == std::string_view{"processes"}) {
    job.options.processes_per_rank = workers_per_rank;
  } else {
    job.options.threads_per_rank = workers_per_rank;
  }
  if (scenario->run(job)) fmt::print("passed\n");
}
