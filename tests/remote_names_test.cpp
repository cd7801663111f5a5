// Two files of a program that have types of the same names for themselves: each call runs its own file's code.
// (remote_names_other_test.cpp is the other one.)
#include "support/remote_names.hpp"

using namespace pyarallel;
using namespace support;

// The same names are in the other file, for other things.
namespace {

struct Item {
  int number = 0;
};

struct Answer {
  std::string what;
  std::string text() const { return what; }
};

std::string where() { return in_worker() ? "here" : "here, but not on a rank"; }

struct Empty {
  Answer operator()(const Item& item) const { return {where() + ": " + "empty" + " " + std::to_string(item.number)}; }
};

struct Holds {
  std::string name;
  Answer operator()(const Item& item) const { return {where() + ": " + name + " " + std::to_string(item.number)}; }
};

Empty empty;
Holds holds{"holds"};
auto lambda = [](const Item& item) -> Answer {
  return {where() + ": " + "lambda" + " " + std::to_string(item.number)};
};
auto capturing = [held = std::string{"captures"}](const Item& item) -> Answer {
  return {where() + ": " + held + " " + std::to_string(item.number)};
};

/// As a vector, and as a list: each is sent by other code.
template <class F>
void call(F& function, LocalRanks& cluster, std::vector<std::string>& texts) {
  const std::vector<Item> items{{1}, {2}};
  const std::list<Item> pulled(items.begin(), items.end());
  const auto add = [&](const MapResult<Answer>& result) {
    for (const Answer& answer : result) texts.push_back(answer.text());
  };
  add(parallel_map(function, items, {.executor = cluster}));
  add(parallel_map(function, pulled, {.executor = cluster}));
}

std::vector<std::string> call_all(LocalRanks& cluster) {
  std::vector<std::string> texts;
  call(empty, cluster, texts);
  call(holds, cluster, texts);
  call(lambda, cluster, texts);
  call(capturing, cluster, texts);
  return texts;
}

}  // namespace

NamesOfAFile support::names_here() {
  using detail::remote_function;
  return {
      {{{remote_function(empty)}, {remote_function(holds)}, {remote_function(lambda)}, {remote_function(capturing)}}},
      &call_all};
}

namespace {

const std::vector<std::string> answers_here{
    "here: empty 1",    "here: empty 2",    "here: empty 1",    "here: empty 2",   "here: holds 1",  "here: holds 2",
    "here: holds 1",    "here: holds 2",    "here: lambda 1",   "here: lambda 2",  "here: lambda 1", "here: lambda 2",
    "here: captures 1", "here: captures 2", "here: captures 1", "here: captures 2"};
const std::vector<std::string> answers_elsewhere{
    "elsewhere: 7, empty, of a",  "elsewhere: 7, empty, of b",  "elsewhere: 7, empty, of a",
    "elsewhere: 7, empty, of b",  "elsewhere: 7, 41, of a",     "elsewhere: 7, 41, of b",
    "elsewhere: 7, 41, of a",     "elsewhere: 7, 41, of b",     "elsewhere: 7, lambda, of a",
    "elsewhere: 7, lambda, of b", "elsewhere: 7, lambda, of a", "elsewhere: 7, lambda, of b",
    "elsewhere: 7, 42, of a",     "elsewhere: 7, 42, of b",     "elsewhere: 7, 42, of a",
    "elsewhere: 7, 42, of b"};

}  // namespace

TEST_CASE("C1 functions, items and results of the same names in two files are those of the file that calls") {
  auto [here, call_here] = names_here();
  auto [there, call_there] = names_elsewhere();
  for (const Shape& shape : all_shapes) {
    INFO(shape.name());
    const Test test;
    {
      LocalRanks cluster{shape, here[0], here[1], here[2], here[3], there[0], there[1], there[2], there[3]};
      CHECK(call_here(cluster) == answers_here);
      CHECK(call_there(cluster) == answers_elsewhere);
      CHECK(call_here(cluster) == answers_here);
    }
    {
      LocalRanks cluster{shape, there[3], here[3], there[2], here[2], there[1], here[1], there[0], here[0]};
      CHECK(call_there(cluster) == answers_elsewhere);
      CHECK(call_here(cluster) == answers_here);
    }
  }
}

TEST_CASE("C6 a function that was served is not taken for one of the same name in another file") {
  const Test test;
  auto [here, call_here] = names_here();
  auto [there, call_there] = names_elsewhere();
  for (std::size_t i = 0; i < here.size(); ++i) {
    CHECK_FALSE(here[i].function == there[i].function);
    LocalRanks cluster{{.ranks = 1}, there[i]};
    CHECK_THROWS_AS(cluster.check(here[i].function), std::invalid_argument);
    CHECK_NOTHROW(cluster.check(there[i].function));
  }
  LocalRanks cluster{{.ranks = 1}, there[0], there[1], there[2], there[3]};
  CHECK_THROWS_AS(call_here(cluster), std::invalid_argument);
  CHECK(call_there(cluster) == answers_elsewhere);
}
