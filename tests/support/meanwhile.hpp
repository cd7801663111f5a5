// A thread beside the test.
#pragma once

#include <exception>
#include <thread>
#include <utility>

namespace support {

/// Runs code() in another thread. What it throws comes out of join(), so that the test fails and the
/// program goes on.
class Meanwhile {
 public:
  template <class Code>
  explicit Meanwhile(Code code)
      : thread_([this, code = std::move(code)]() mutable {
          try {
            code();
          } catch (...) {
            exception_ = std::current_exception();
          }
        }) {}
  Meanwhile(const Meanwhile&) = delete;
  Meanwhile& operator=(const Meanwhile&) = delete;

  void join() {
    thread_.join();
    if (exception_) std::rethrow_exception(exception_);
  }

 private:
  std::exception_ptr exception_;
  std::jthread thread_;  // last: it is joined before the exception is gone
};

}  // namespace support
