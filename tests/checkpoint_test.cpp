// Checkpoints as a run sees them: what is stored, what is found again, and when; on threads and inline, over the
// SQLite store and over a store of one's own. (Processes: process_checkpoint_test.cpp; files:
// checkpoint_file_test.cpp.)
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <pyarallel.hpp>
#include <pyarallel/checkpoint.hpp>
#include <ranges>
#include <set>
#include <span>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "support/catch.hpp"
#include "support/fake_clock.hpp"
#include "support/folder.hpp"
#include "support/refusal.hpp"
#include "support/text.hpp"
#include "support/wait.hpp"
#include "support/watchdog.hpp"

using namespace pyarallel;
using namespace std::chrono_literals;
using support::Folder;
using support::wait_until;
using support::Watchdog;
using Ints = std::vector<int>;
using IntOptions = MapOptions<int, int>;

namespace {

Ints numbers(int count) {
  Ints all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

Ints tenfold(int count) {
  Ints all = numbers(count);
  for (int& number : all) number *= 10;
  return all;
}

template <class R>
std::vector<R> list_of(const MapResult<R>& result) {
  return std::vector<R>(result.begin(), result.end());
}

template <class R>
Ints attempts_of(const MapResult<R>& result) {
  Ints all;
  for (const auto& item : result.item_results()) all.push_back(item.attempts);
  return all;
}

using support::refusal;
using support::says;

/// A function that counts its calls, and which items it was called with.
class Counting {
 public:
  int operator()(int item) const {
    const std::lock_guard lock{calls_->mutex};
    calls_->items.insert(item);
    return item * 10;
  }
  std::multiset<int> take() const {
    const std::lock_guard lock{calls_->mutex};
    return std::exchange(calls_->items, {});
  }

 private:
  struct Calls {
    std::mutex mutex;
    std::multiset<int> items;
  };
  std::shared_ptr<Calls> calls_ = std::make_shared<Calls>();
};

struct Boom : std::runtime_error {
  using runtime_error::runtime_error;
};

/// A store in memory, whose every step a test may see.
class MemoryStore final : public CheckpointStore {
 public:
  struct Row {
    ItemFingerprint item;
    Bytes result;
  };
  std::map<ItemKey, Row> rows;      // committed
  std::vector<ItemKey> added = {};  // since the last commit
  CheckpointIdentity identity;
  int commits = 0;
  bool open_now = false;
  std::function<void()> on_find = [] {};
  std::function<void()> on_add = [] {};
  std::function<void()> on_commit = [] {};

  std::unique_ptr<CheckpointSession> open(const CheckpointIdentity& wanted,
                                          const std::function<bool()>& give_up) override {
    identity = wanted;
    gave_up = give_up();
    return std::make_unique<Session>(*this);
  }
  bool gave_up = false;

 private:
  class Session final : public CheckpointSession {
   public:
    explicit Session(MemoryStore& store) : store_(store) { store_.open_now = true; }
    ~Session() override { store_.open_now = false; }
    std::optional<std::span<const std::byte>> find(const ItemKey& key, const ItemFingerprint& item) override {
      store_.on_find();
      const auto found = store_.rows.find(key);
      if (found == store_.rows.end() || found->second.item != item) return std::nullopt;
      return found->second.result;
    }
    void add(const ItemKey& key, const ItemFingerprint& item, std::span<const std::byte> result) override {
      store_.on_add();
      waiting_[key] = {item, {result.begin(), result.end()}};
      store_.added.push_back(key);
    }
    void commit() override {
      store_.on_commit();
      for (auto& [key, row] : waiting_) store_.rows[key] = std::move(row);
      waiting_.clear();
      store_.added.clear();
      ++store_.commits;
    }

   private:
    MemoryStore& store_;
    std::map<ItemKey, Row> waiting_;
  };
};

/// Calls the test with the options of each way to run in this process.
template <class Code>
void for_each_way(Code code) {
  SECTION("threads") { code(IntOptions{.workers = 4}); }
  SECTION("one thread") { code(IntOptions{.workers = 1}); }
  SECTION("sequential") { code(IntOptions{.executor = Executor::sequential}); }
}

}  // namespace

// K1: what is stored -----------------------------------------------------------------------------------

TEST_CASE("K1 a later run takes what is stored, and computes only what is missing") {
  const Watchdog watchdog;
  for_each_way([](IntOptions options) {
    const Folder folder;
    options.checkpoint = sqlite_checkpoint(folder / "run.ckpt");
    const Counting fn;
    const auto broken = [&](int item) {
      if (item % 7 == 3) throw Boom("not yet");
      return fn(item);
    };
    const Ints items = numbers(50);
    const auto first = parallel_map(broken, items, options);
    CHECK(first.complete());
    CHECK(first.failures().size() == 7);
    CHECK(fn.take().size() == 43);

    const auto second = parallel_map(fn, items, options);
    CHECK(list_of(second) == tenfold(50));
    CHECK(fn.take() == std::multiset<int>{3, 10, 17, 24, 31, 38, 45});
    const Ints attempts = attempts_of(second);
    for (int item = 0; item < 50; ++item) CHECK(attempts[static_cast<std::size_t>(item)] == (item % 7 == 3 ? 1 : 0));

    const auto third = parallel_map(fn, items, options);
    CHECK(list_of(third) == tenfold(50));
    CHECK(fn.take().empty());
    CHECK(folder.names() == std::set<std::string>{"run.ckpt"});
  });
}

TEST_CASE("K1 input that is pulled is resumed too, also if its size is unknown") {
  const Watchdog watchdog;
  for_each_way([](IntOptions options) {
    const Folder folder;
    options.checkpoint = sqlite_checkpoint(folder / "run.ckpt");
    const Counting fn;
    const std::list<int> list{5, 6, 7};
    CHECK(list_of(parallel_map(fn, list, options)) == Ints{50, 60, 70});
    CHECK(fn.take() == std::multiset<int>{5, 6, 7});
    std::istringstream text("5 6 7 8");
    CHECK(list_of(parallel_map(fn, std::views::istream<int>(text), options)) == Ints{50, 60, 70, 80});
    CHECK(fn.take() == std::multiset<int>{8});
    CHECK(list_of(parallel_map(fn, std::views::iota(5, 9), options)) == Ints{50, 60, 70, 80});
    CHECK(fn.take().empty());
  });
}

TEST_CASE("K1 each success is in the file before it is reported, and failures never are") {
  const Watchdog watchdog;
  for_each_way([](IntOptions options) {
    const Folder folder;
    const auto path = folder / "run.ckpt";
    options.checkpoint = sqlite_checkpoint(path);
    std::size_t succeeded = 0;
    bool all_there = true;
    options.on_result = [&](const ItemResult<int>& item) {
      if (item.ok()) ++succeeded;
      all_there = all_there && checkpoint_info(path).completed >= succeeded;
    };
    const auto fn = [](int item) { return item % 2 == 0 ? item : throw Boom("odd"); };
    CHECK(parallel_map(fn, numbers(40), options).failures().size() == 20);
    CHECK(all_there);
    CHECK(succeeded == 20);
    CHECK(checkpoint_info(path).completed == 20);
  });
}

TEST_CASE("K1 results that arrive while others are written are written together") {
  const Watchdog watchdog;
  const auto store = std::make_shared<MemoryStore>();
  std::atomic<int> done = 0;
  // The first commit takes until all the others are done.
  store->on_commit = [&] {
    if (store->commits == 0) wait_until([&] { return done == 8; });
  };
  const auto fn = [&](int item) {
    ++done;
    return item;
  };
  CHECK(parallel_map(fn, numbers(8), {.workers = 2, .batch = Batch{.size = 8}, .checkpoint = store}).ok());
  CHECK(store->rows.size() == 8);
  CHECK(store->commits <= 9);
}

TEST_CASE("K1 what was made before a callback threw is stored all the same") {
  const Watchdog watchdog;
  const Folder folder;
  const auto path = folder / "run.ckpt";
  std::atomic<bool> thrown = false;
  const auto fn = [&](int item) {
    if (item == 1) wait_until([&] { return thrown.load(); });
    return item;
  };
  const auto throws = [&](const ItemResult<int>&) {
    thrown = true;
    throw Boom("callback");
  };
  CHECK_THROWS_AS(
      parallel_map(fn, numbers(2), {.workers = 2, .checkpoint = sqlite_checkpoint(path), .on_result = throws}), Boom);
  CHECK(checkpoint_info(path).completed == 2);
}

TEST_CASE("K1 what ended after a stop is stored too") {
  const Watchdog watchdog;
  for_each_way([](IntOptions options) {
    const Folder folder;
    options.checkpoint = sqlite_checkpoint(folder / "run.ckpt");
    std::stop_source stop;
    options.stop = stop.get_token();
    const Counting fn;
    const auto stops = [&](int item) {
      if (item == 5) stop.request_stop();
      return fn(item);
    };
    const auto first = parallel_map(stops, numbers(50), options);
    CHECK(first.cancelled());
    const auto ran = fn.take();
    CHECK(ran.count(5) == 1);
    CHECK(ran.size() < 50);
    CHECK(checkpoint_info(folder / "run.ckpt").completed == ran.size());

    options.stop = {};
    CHECK(list_of(parallel_map(fn, numbers(50), options)) == tenfold(50));
    CHECK(fn.take().size() == 50 - ran.size());
  });
}

namespace {
struct Unstorable {
  int number = 0;
};
}  // namespace

template <>
struct pyarallel::Codec<Unstorable> {
  static void encode(const Unstorable& value, Bytes& out) {
    if (value.number == 3) throw std::length_error("three is too many");
    Codec<int>::encode(value.number, out);
  }
  static Unstorable decode(std::span<const std::byte>& in) {
    const int number = Codec<int>::decode(in);
    if (number == 5) throw std::runtime_error("five is not read");
    return {number};
  }
};

TEST_CASE("K1 a result that cannot be stored ends the run loudly, and the others are safe") {
  const Watchdog watchdog;
  const Folder folder;
  const auto path = folder / "run.ckpt";
  const auto fn = [](int item) { return Unstorable{item}; };
  const MapOptions<int, Unstorable> options{.executor = Executor::sequential, .checkpoint = sqlite_checkpoint(path)};
  const std::string text = refusal([&] { parallel_map(fn, numbers(10), options); });
  CHECK(says(text, "item 3"));
  CHECK(says(text, "three is too many"));
  CHECK(checkpoint_info(path).completed == 3);
}

TEST_CASE("K2 a stored result that cannot be decoded ends the run, naming the item") {
  const Watchdog watchdog;
  const Folder folder;
  const auto fn = [](int item) { return Unstorable{item}; };
  const MapOptions<int, Unstorable> options{.executor = Executor::sequential,
                                            .checkpoint = sqlite_checkpoint(folder / "run.ckpt")};
  CHECK(parallel_map(fn, Ints{4, 5, 6}, options).ok());
  const std::string text = refusal([&] { parallel_map(fn, Ints{4, 5, 6}, options); });
  CHECK(says(text, "item 1"));
  CHECK(says(text, "five is not read"));
}

TEST_CASE("K1 an error of the store ends the run, and nothing is reported that it did not take") {
  const Watchdog watchdog;
  const auto store = std::make_shared<MemoryStore>();
  int reported = 0;
  IntOptions options{.workers = 3, .checkpoint = store};
  options.on_result = [&](const ItemResult<int>&) { ++reported; };
  SECTION("add()") {
    store->on_add = [&] {
      if (store->rows.size() + store->added.size() >= 4) throw CheckpointError("full");
    };
  }
  SECTION("commit()") {
    store->on_commit = [&] {
      if (store->commits == 2) throw CheckpointError("full");
    };
  }
  CHECK(refusal([&] { parallel_map([](int item) { return item; }, numbers(1000), options); }) == "full");
  CHECK(reported <= static_cast<int>(store->rows.size()));
  CHECK(store->rows.size() < 1000);
  CHECK_FALSE(store->open_now);
}

// K2: what a row is good for -----------------------------------------------------------------------------

TEST_CASE("K2 an item that has changed in its place is computed again") {
  const Watchdog watchdog;
  const Folder folder;
  const IntOptions options{.workers = 2, .checkpoint = sqlite_checkpoint(folder / "run.ckpt")};
  const Counting fn;
  CHECK(parallel_map(fn, Ints{1, 2, 3, 4}, options).ok());
  fn.take();
  CHECK(list_of(parallel_map(fn, Ints{1, 9, 3, 8}, options)) == Ints{10, 90, 30, 80});
  CHECK(fn.take() == std::multiset<int>{8, 9});
  // The new results took the place of the old ones.
  CHECK(checkpoint_info(folder / "run.ckpt").completed == 4);
  CHECK(list_of(parallel_map(fn, Ints{1, 2, 3, 8}, options)) == Ints{10, 20, 30, 80});
  CHECK(fn.take() == std::multiset<int>{2});
}

namespace {
struct Order {
  std::int64_t id = 0;
  std::string text;
};
}  // namespace

TEST_CASE("K2 with item_key rows follow their items, wherever they are") {
  const Watchdog watchdog;
  const Folder folder;
  using Options = MapOptions<Order, std::string>;
  std::mutex mutex;
  std::multiset<std::int64_t> calls;
  const auto fn = [&](const Order& order) {
    const std::lock_guard lock{mutex};
    calls.insert(order.id);
    return "did " + order.text;
  };
  const auto run = [&](const std::vector<Order>& orders, const auto& key) {
    calls.clear();
    return list_of(parallel_map(
        fn, orders, Options{.workers = 2, .checkpoint = sqlite_checkpoint(folder / "run.ckpt"), .item_key = key}));
  };
  const auto by_number = [](const Order& order) -> ItemKey { return order.id; };
  const auto by_text = [](const Order& order) -> ItemKey { return std::to_string(order.id); };
  using Strings = std::vector<std::string>;
  CHECK(run({{1, "a"}, {2, "b"}, {3, "c"}}, by_number) == Strings{"did a", "did b", "did c"});
  CHECK(calls.size() == 3);
  // Another order, an item fewer, a new one.
  CHECK(run({{4, "d"}, {3, "c"}, {1, "a"}}, by_number) == Strings{"did d", "did c", "did a"});
  CHECK(calls == std::multiset<std::int64_t>{4});
  // The same key, another item.
  CHECK(run({{2, "b"}, {3, "other"}}, by_number) == Strings{"did b", "did other"});
  CHECK(calls == std::multiset<std::int64_t>{3});
  // 1 and "1" are two keys.
  CHECK(run({{1, "a"}, {2, "b"}}, by_text) == Strings{"did a", "did b"});
  CHECK(calls == std::multiset<std::int64_t>{1, 2});
  CHECK(checkpoint_info(folder / "run.ckpt").completed == 6);
  const Options odd_keys{.workers = 1,
                         .checkpoint = sqlite_checkpoint(folder / "odd.ckpt"),
                         .item_key = [](const Order& order) -> ItemKey {
                           return order.id == 1 ? std::string() : std::string("\0\xff'", 3);
                         }};
  for (int round = 0; round < 2; ++round) {
    calls.clear();
    CHECK(parallel_map(fn, std::vector<Order>{{1, "a"}, {2, "b"}}, odd_keys).ok());
    CHECK(calls.size() == (round == 0 ? 2 : 0));
  }
}

namespace {
namespace before {
struct Page {
  std::string text;
};
}  // namespace before
namespace after {
struct Page {
  std::string text;
  int status = 0;
};
}  // namespace after
}  // namespace

TEST_CASE("K2 another version, type or key mode: refused, with both sides named") {
  const Watchdog watchdog;
  const Folder folder;
  const auto path = folder / "run.ckpt";
  const Ints items = numbers(3);
  const auto fn = [](int item) { return item; };
  parallel_map(fn, items, {.checkpoint = sqlite_checkpoint(path, {.version = "prompt-2"})});
  const std::string content = support::content_of(path);
  int calls = 0;
  const auto names = [&](const std::string& text, const std::string& there, const std::string& here) {
    CHECK(says(text, "'" + there + "'"));
    CHECK(says(text, "'" + here + "'"));
    CHECK(says(text, path.string()));
    CHECK(support::content_of(path) == content);
    CHECK(folder.names() == std::set<std::string>{"run.ckpt"});
  };
  const auto store = sqlite_checkpoint(path, {.version = "prompt-2"});
  const auto count = [&](auto value) {
    return [&calls, value](const auto&) {
      ++calls;
      return value;
    };
  };
  names(
      refusal([&] { parallel_map(count(1), items, {.checkpoint = sqlite_checkpoint(path, {.version = "prompt-3"})}); }),
      "prompt-2", "prompt-3");
  names(refusal([&] { parallel_map(count(1), items, {.checkpoint = sqlite_checkpoint(path)}); }), "prompt-2", "");
  names(refusal([&] { parallel_map(count(std::string("a")), items, {.checkpoint = store}); }), "int", "std::string");
  names(refusal([&] { parallel_map(count(1), std::vector<long>{1, 2}, {.checkpoint = store}); }), "int", "long");
  const auto key = [](const int& item) -> ItemKey { return item; };
  names(refusal([&] { parallel_map(count(1), items, {.checkpoint = store, .item_key = key}); }), "position",
        "item_key");
  // Nor for no items at all.
  names(refusal([&] { parallel_map(count(std::string("a")), Ints{}, {.checkpoint = store}); }), "int", "std::string");
  CHECK(calls == 0);

  // A field more is another type.
  const auto page = folder / "page.ckpt";
  parallel_map([](int) { return before::Page{}; }, items, {.checkpoint = sqlite_checkpoint(page)});
  const std::string text =
      refusal([&] { parallel_map([](int) { return after::Page{}; }, items, {.checkpoint = sqlite_checkpoint(page)}); });
  CHECK(says(text, "before::Page{std::string}"));
  CHECK(says(text, "after::Page{std::string, int}"));
}

namespace {
enum class Color : unsigned char { red };
struct Node {
  int value = 0;
  std::vector<Node> children;
};
}  // namespace

TEST_CASE("K2 a type is named with all that its encoding depends on") {
  using detail::type_text;
  CHECK(type_text<int>() == "int");
  CHECK(type_text<std::string>() == "std::string");
  CHECK(says(type_text<Color>(), "Color: unsigned char"));
  CHECK(type_text<std::vector<std::string>>() == "std::vector<std::string>");
  CHECK(type_text<std::map<int, std::vector<bool>>>() == "std::map<int, std::vector<bool>>");
  CHECK(type_text<std::array<double, 3>>() == "std::array<double, 3>");
  CHECK(type_text<std::tuple<int, std::optional<char>>>() == "std::tuple<int, std::optional<char>>");
  CHECK(type_text<std::tuple<>>() == "std::tuple<>");
  CHECK(type_text<std::variant<std::monostate, int>>() == "std::variant<std::monostate, int>");
  CHECK(type_text<std::unique_ptr<int>>() == "std::unique_ptr<int>");
  CHECK(says(type_text<std::vector<before::Page>>(), "before::Page{std::string}>"));
  CHECK(says(type_text<Node>(), "Node{int, std::vector<"));
  CHECK_FALSE(says(type_text<Unstorable>(), "{"));  // it has a Codec of its own, which knows better
}

TEST_CASE("K2 the hash is SipHash-2-4 with 128 bits") {
  // From the authors' test vectors: the key 00 01 ... 0f, and the bytes 00, 01, ...
  const auto hex_of = [](std::size_t size, std::size_t piece) {
    detail::SipHash128 hash{0x0706050403020100, 0x0f0e0d0c0b0a0908};
    Bytes bytes;
    for (std::size_t i = 0; i < size; ++i) bytes.push_back(static_cast<std::byte>(i));
    for (std::size_t at = 0; at < size; at += piece) {
      hash.update(std::span<const std::byte>(bytes).subspan(at, std::min(piece, size - at)));
    }
    std::string hex;
    for (const std::byte byte : hash.finish()) hex += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
    return hex;
  };
  for (const std::size_t piece : {1U, 3U, 8U, 100U}) {
    CHECK(hex_of(0, piece) == "a3817f04ba25a8e66df67214c7550293");
    CHECK(hex_of(1, piece) == "da87c1d86b99af44347659119b22fc45");
    CHECK(hex_of(8, piece) == hex_of(8, 8));
    CHECK(hex_of(63, piece) == "5150d1772f50834a503e069a973fbd7c");
  }
}

// K4: keys -------------------------------------------------------------------------------------------------

TEST_CASE("K4 with a checkpoint two items of one key are refused, and so is an item without a key") {
  const Watchdog watchdog;
  for_each_way([](IntOptions options) {
    const Folder folder;
    options.checkpoint = sqlite_checkpoint(folder / "run.ckpt");
    const auto fn = [](int item) { return item; };
    options.item_key = [](const int& item) -> ItemKey { return item % 7; };
    const std::string twice = refusal([&] { parallel_map(fn, Ints{1, 2, 5, 3, 12}, options); });
    CHECK(says(twice, "items 2 and 4"));
    CHECK(says(twice, "5"));
    options.item_key = [](const int& item) -> ItemKey {
      return item == 3 ? ItemKey{} : ItemKey{"key " + std::to_string(item)};
    };
    CHECK(says(refusal([&] { parallel_map(fn, Ints{1, 2, 5, 3}, options); }), "item 3"));
    // Keys that repeat are as good as any where nothing is stored under them.
    options.checkpoint = nullptr;
    options.item_key = [](const int&) -> ItemKey { return {}; };
    CHECK(parallel_map(fn, Ints{1, 1}, options).ok());
  });
}

TEST_CASE("K4 what a key function throws leaves the call, and what was done is stored") {
  const Watchdog watchdog;
  const Folder folder;
  IntOptions options{.executor = Executor::sequential, .checkpoint = sqlite_checkpoint(folder / "run.ckpt")};
  options.item_key = [](const int& item) -> ItemKey { return item == 3 ? throw Boom("no key") : item; };
  CHECK_THROWS_AS(parallel_map([](int item) { return item; }, numbers(5), options), Boom);
  CHECK(checkpoint_info(folder / "run.ckpt").completed == 3);
}

// K5: hits -------------------------------------------------------------------------------------------------

TEST_CASE("K5 hits have no attempts, and join callbacks and progress in their order") {
  const Watchdog watchdog;
  for_each_way([](IntOptions options) {
    const Folder folder;
    options.checkpoint = sqlite_checkpoint(folder / "run.ckpt");
    options.item_key = [](const int& item) -> ItemKey { return std::int64_t{1000} + item; };
    CHECK(parallel_map([](int item) { return item * 10; }, Ints{0, 2, 4}, options).ok());

    using Pair = std::pair<std::size_t, std::size_t>;
    std::vector<Pair> progress;
    std::map<std::size_t, int> attempts;
    options.on_progress = [&](std::size_t done, std::size_t total) { progress.emplace_back(done, total); };
    bool right = true;
    options.on_result = [&](const ItemResult<int>& item) {
      attempts[item.index] = item.attempts;
      right = right && item.value() == static_cast<int>(item.index) * 10 &&
              item.key == ItemKey{std::int64_t{1000} + static_cast<std::int64_t>(item.index)} &&
              (item.attempts > 0 || item.duration == 0ns);
    };
    const auto result = parallel_map([](int item) { return item * 10; }, numbers(6), options);
    CHECK(list_of(result) == tenfold(6));
    CHECK(right);
    CHECK(attempts == std::map<std::size_t, int>{{0, 0}, {1, 1}, {2, 0}, {3, 1}, {4, 0}, {5, 1}});
    CHECK(progress == std::vector<Pair>{{1, 6}, {2, 6}, {3, 6}, {4, 6}, {5, 6}, {6, 6}});
    CHECK(attempts_of(result) == Ints{0, 1, 0, 1, 0, 1});
    CHECK(says(summary(result), "6 succeeded: 3 from the checkpoint\n"));
  });
}

TEST_CASE("K5 a timeout of zero takes no hits, and neither does a stopped token") {
  const Watchdog watchdog;
  for_each_way([](IntOptions options) {
    const Folder folder;
    options.checkpoint = sqlite_checkpoint(folder / "run.ckpt");
    const auto fn = [](int item) { return item; };
    CHECK(parallel_map(fn, numbers(5), options).ok());
    IntOptions late = options;
    late.timeout = 0s;
    const auto none = parallel_map(fn, numbers(5), late);
    CHECK(none.timed_out());
    CHECK(none.failures().size() == 5);
    std::stop_source stop;
    stop.request_stop();
    options.stop = stop.get_token();
    const auto cancelled = parallel_map(fn, numbers(5), options);
    CHECK(cancelled.cancelled());
    CHECK(cancelled.failures().size() == 5);
  });
}

TEST_CASE("K5 the deadline binds during a long run of hits, and so does a stop") {
  const Watchdog watchdog;
  for_each_way([](IntOptions options) {
    const auto store = std::make_shared<MemoryStore>();
    options.checkpoint = store;
    const auto fn = [](int item) { return item; };
    CHECK(parallel_map(fn, numbers(1000), options).ok());

    support::FakeClock clock;
    const support::ClockOverride use{clock};
    IntOptions late = options;
    late.timeout = 100s;
    store->on_find = [&] { clock.advance(1s); };  // each look takes a second
    const auto result = parallel_map(fn, numbers(1000), late);
    CHECK(result.timed_out());
    CHECK(result.ok_values() == numbers(100));
    store->on_find = [] {};

    std::stop_source stop;
    options.stop = stop.get_token();
    options.on_progress = [&](std::size_t done, std::size_t) {
      if (done == 37) stop.request_stop();
    };
    const auto stopped = parallel_map(fn, numbers(1000), options);
    CHECK(stopped.cancelled());
    CHECK(stopped.ok_values() == numbers(37));
  });
}

TEST_CASE("B2 what a callback throws at a hit leaves the call, and no later one runs") {
  const Watchdog watchdog;
  for_each_way([](IntOptions options) {
    const Folder folder;
    options.checkpoint = sqlite_checkpoint(folder / "run.ckpt");
    const Counting fn;
    CHECK(parallel_map(fn, numbers(10), options).ok());
    fn.take();
    int calls = 0;
    options.on_result = [&](const ItemResult<int>& item) {
      ++calls;
      if (item.index == 4) throw Boom("callback");
    };
    CHECK_THROWS_AS(parallel_map(fn, numbers(20), options), Boom);
    CHECK(calls == 5);
    CHECK(fn.take().empty());
    options.on_result = {};
    CHECK(list_of(parallel_map(fn, numbers(10), options)) == tenfold(10));
  });
}

TEST_CASE("K5 a run with nothing left to do starts no worker") {
  const Watchdog watchdog;
  const Folder folder;
  IntOptions options{.workers = 4, .checkpoint = sqlite_checkpoint(folder / "run.ckpt")};
  CHECK(parallel_map([](int item) { return item; }, numbers(500), options).ok());
  std::atomic<int> initialized = 0;
  options.worker_init = [&] { ++initialized; };
  CHECK(parallel_map([](int item) { return item; }, numbers(500), options).ok());
  CHECK(initialized == 0);
}

TEST_CASE("L3 hits draw no tokens") {
  const Watchdog watchdog;
  for_each_way([](IntOptions options) {
    const Folder folder;
    options.checkpoint = sqlite_checkpoint(folder / "run.ckpt");
    CHECK(parallel_map([](int item) { return item; }, numbers(20), options).ok());
    Limiter limiter{RateLimit{.count = 1, .per = 1h}};
    options.rate_limit = limiter;
    CHECK(parallel_map([](int item) { return item; }, numbers(21), options).ok());
    CHECK_FALSE(limiter.try_acquire());  // the one that was new took it
  });
}

// The rest of the contract, with a checkpoint ------------------------------------------------------------

TEST_CASE("C9 a starmap is resumed too, and so is a decorated function") {
  const Watchdog watchdog;
  const Folder folder;
  std::atomic<int> calls = 0;
  const auto add = [&](int a, const std::string& b) {
    ++calls;
    return std::to_string(a) + b;
  };
  const std::vector<std::tuple<int, std::string>> items{{1, "a"}, {2, "b"}};
  for (int round = 0; round < 2; ++round) {
    const auto result = parallel_starmap(add, items, {.checkpoint = sqlite_checkpoint(folder / "star.ckpt")});
    CHECK(list_of(result) == std::vector<std::string>{"1a", "2b"});
    const auto decorated = parallel(add, {.workers = 2});
    CHECK(list_of(decorated.starmap(items, {.checkpoint = sqlite_checkpoint(folder / "decorated.ckpt")})) ==
          std::vector<std::string>{"1a", "2b"});
  }
  CHECK(calls == 4);
}

TEST_CASE("C8 calls nest, each with a checkpoint of its own, but not with the same one") {
  const Watchdog watchdog;
  const Folder folder;
  const auto inner = [&](const std::filesystem::path& path) {
    return parallel_map([](int item) { return item; }, numbers(3),
                        {.workers = 2, .checkpoint = sqlite_checkpoint(path)})
        .ok();
  };
  const auto outer = folder / "outer.ckpt";
  const auto fn = [&](int item) {
    const std::string mine = "inner" + std::to_string(item) + ".ckpt";
    return inner(folder / mine) && says(refusal([&] { inner(outer); }), "another run is using it");
  };
  const auto result = parallel_map(fn, numbers(4), {.workers = 2, .checkpoint = sqlite_checkpoint(outer)});
  CHECK(result.ok());
  CHECK(list_of(result) == std::vector<bool>(4, true));
}

TEST_CASE("C3 with a checkpoint items that stay put are still used where they are") {
  const Watchdog watchdog;
  const Folder folder;
  std::vector<std::vector<int>> items{{1}, {2, 3}};
  const auto fn = [](std::vector<int>& item) {
    item.push_back(0);
    return item.size();
  };
  CHECK(list_of(parallel_map(fn, items, {.checkpoint = sqlite_checkpoint(folder / "run.ckpt")})) ==
        std::vector<std::size_t>{2, 3});
  CHECK(items == std::vector<std::vector<int>>{{1, 0}, {2, 3, 0}});
}

TEST_CASE("C4 results that are move-only or nothing at all are stored and found") {
  const Watchdog watchdog;
  const Folder folder;
  for (int round = 0; round < 2; ++round) {
    const auto pointers = parallel_map([](int item) { return std::make_unique<int>(item); }, numbers(3),
                                       {.checkpoint = sqlite_checkpoint(folder / "pointers.ckpt")});
    CHECK(*pointers[2] == 2);
    std::atomic<int> calls = 0;
    CHECK(
        parallel_map([&](int) { ++calls; }, numbers(3), {.checkpoint = sqlite_checkpoint(folder / "void.ckpt")}).ok());
    CHECK(calls == (round == 0 ? 3 : 0));
  }
}

TEST_CASE("E1 with a checkpoint max_errors still ends the run, and a later one goes on") {
  const Watchdog watchdog;
  const Folder folder;
  const IntOptions options{.workers = 2, .max_errors = 3, .checkpoint = sqlite_checkpoint(folder / "run.ckpt")};
  std::atomic<int> calls = 0;
  const auto down = [&](int item) {
    ++calls;
    return item < 10 ? item : throw Boom("down");
  };
  const auto first = parallel_map(down, numbers(1000), options);
  CHECK(first.aborted());
  CHECK(calls <= 10 + 2 + 4);
  const Counting fn;
  CHECK(parallel_map(fn, numbers(1000), options).ok());
  CHECK(fn.take().size() == 1000 - first.successes().size());
}

TEST_CASE("T1 a retried item is stored once it succeeds") {
  const Watchdog watchdog;
  const auto store = std::make_shared<MemoryStore>();
  std::atomic<int> calls = 0;
  const auto flaky = [&](int item) { return ++calls % 3 == 0 ? item : throw Boom("again"); };
  const auto result =
      parallel_map(flaky, numbers(1), {.retry = Retry{.attempts = 5, .backoff = 0s}, .checkpoint = store});
  CHECK(result.ok());
  CHECK(attempts_of(result) == Ints{3});
  CHECK(store->rows.size() == 1);
  CHECK(attempts_of(parallel_map(flaky, numbers(1), {.checkpoint = store})) == Ints{0});
}

TEST_CASE("K1 a store of one's own is told what it needs to know") {
  const Watchdog watchdog;
  const auto store = std::make_shared<MemoryStore>();
  const auto length = [](const std::string& text) { return text.size(); };
  CHECK(parallel_map(length, std::vector<std::string>{"a", "bb"}, {.checkpoint = store}).ok());
  CHECK(store->identity.item_type == "std::string");
  CHECK(store->identity.result_type == detail::type_text<std::size_t>());
  CHECK(store->identity.codec_version == codec_version);
  CHECK_FALSE(store->identity.keyed);
  CHECK_FALSE(store->gave_up);
  CHECK(store->rows.contains(ItemKey{std::int64_t{1}}));
  CHECK_FALSE(store->open_now);
  parallel_map(length, std::vector<std::string>{"a"}, {.timeout = 0s, .checkpoint = store});
  CHECK(store->gave_up);
  // Results live as long as the map's, not as the session's.
  const auto again = parallel_map(length, std::vector<std::string>{"a", "bb"}, {.checkpoint = store});
  CHECK(list_of(again) == std::vector<std::size_t>{1, 2});
}

TEST_CASE("K1 which options take a checkpoint is known at compile time") {
  using Store = std::shared_ptr<CheckpointStore>;
  STATIC_REQUIRE(std::is_constructible_v<CheckpointArg<int, int>, Store>);
  STATIC_REQUIRE(std::is_constructible_v<CheckpointArg<int, int>, std::shared_ptr<MemoryStore>>);
  STATIC_REQUIRE(std::is_constructible_v<CheckpointArg<int, int>, std::nullptr_t>);
  STATIC_REQUIRE_FALSE(std::is_constructible_v<CheckpointArg<int*, int>, Store>);
  STATIC_REQUIRE_FALSE(std::is_constructible_v<CheckpointArg<int, std::string_view>, Store>);
  STATIC_REQUIRE_FALSE(std::is_constructible_v<CheckpointArg<int, int>, std::string>);
  CHECK(parallel_map([](int item) { return item; }, numbers(3), {.checkpoint = nullptr}).ok());
}
