// The other file of remote_names_test.cpp.
#include "support/remote_names.hpp"

using namespace pyarallel;
using namespace support;

// The same names are in the other file, for other things.
namespace {

struct Item {
  std::string name;
  double number = 0;
};

struct Answer {
  int number = 0;
  std::vector<std::string> parts;
  std::string text() const {
    return parts.at(0) + ": " + std::to_string(number) + ", " + parts.at(1) + ", of " + parts.at(2);
  }
};

std::string where() { return in_worker() ? "elsewhere" : "elsewhere, but not on a rank"; }

struct Empty {
  Answer operator()(const Item& item) const { return {static_cast<int>(item.number), {where(), "empty", item.name}}; }
};

struct Holds {
  int number = 0;
  Answer operator()(const Item& item) const {
    return {static_cast<int>(item.number), {where(), std::to_string(number), item.name}};
  }
};

Empty empty;
Holds holds{41};
auto lambda = [](const Item& item) -> Answer {
  return {static_cast<int>(item.number), {where(), "lambda", item.name}};
};
auto capturing = [held = 42](const Item& item) -> Answer {
  return {static_cast<int>(item.number), {where(), std::to_string(held), item.name}};
};

/// As a vector, and as a list: each is sent by other code.
template <class F>
void call(F& function, LocalRanks& cluster, std::vector<std::string>& texts) {
  const std::vector<Item> items{{"a", 7.5}, {"b", 7.5}};
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

NamesOfAFile support::names_elsewhere() {
  using detail::remote_function;
  return {
      {{{remote_function(empty)}, {remote_function(holds)}, {remote_function(lambda)}, {remote_function(capturing)}}},
      &call_all};
}
