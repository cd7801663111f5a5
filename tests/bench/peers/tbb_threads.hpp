// How many threads oneTBB uses, for those who use it directly and for std::execution::par.
#pragma once

#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/info.h>
#include <oneapi/tbb/task_arena.h>

#include <cstddef>
#include <optional>

namespace bench {

class TbbThreads {
 public:
  explicit TbbThreads(std::size_t workers) : limit_(oneapi::tbb::global_control::max_allowed_parallelism, workers) {
    // The default arena has as many places as there are CPUs, whatever the limit.
    if (workers > static_cast<std::size_t>(oneapi::tbb::info::default_concurrency())) {
      arena_.emplace(static_cast<int>(workers));
    }
  }

  template <class Call>
  void run(Call call) {
    if (arena_) {
      arena_->execute(call);
    } else {
      call();
    }
  }

 private:
  oneapi::tbb::global_control limit_;
  std::optional<oneapi::tbb::task_arena> arena_;
};

}  // namespace bench
