// A link over MPI messages: peers are ranks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <span>
#include <utility>
#include <vector>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/mpi/mpi_api.hpp"
#include "pyarallel/detail/remote/link.hpp"

namespace pyarallel::detail {

/// Nothing here waits for another rank. Errors of MPI end the job, as MPI_ERRORS_ARE_FATAL says.
class MpiLink final : public Link {
 public:
  explicit MpiLink(MPI_Comm communicator) : communicator_(communicator) {
    int size = 0;
    MPI_Comm_size(communicator, &size);
    receiving_.resize(static_cast<std::size_t>(size));
    small_.resize(small_message);
  }
  MpiLink(const MpiLink&) = delete;
  MpiLink& operator=(const MpiLink&) = delete;
  ~MpiLink() override {
    while (sending()) test_sent();
  }

  void send(std::size_t peer, Bytes& bytes) override {
    if (bytes.empty()) return;
    sending_.emplace_back();
    Sending& message = sending_.back();
    message.bytes = std::exchange(bytes, spare_buffer());
    for (std::size_t at = 0; at < message.bytes.size(); at += largest_message) {  // a count is an int
      const std::size_t size = std::min(largest_message, message.bytes.size() - at);
      message.requests.push_back(MPI_REQUEST_NULL);
      MPI_Isend(message.bytes.data() + at, static_cast<int>(size), MPI_BYTE, static_cast<int>(peer), tag, communicator_,
                &message.requests.back());
    }
    if (sending_.size() == 1) test_sent();
  }

  std::span<const std::byte> receive(std::size_t& peer) override {
    if (!sending_.empty()) test_sent();
    if (delivered_ != nullptr) {
      Bytes& bytes = delivered_->front().bytes;
      if (spare_received_.size() < most_spare && bytes.size() <= largest_spare) {
        spare_received_.push_back(std::move(bytes));
      }
      delivered_->pop_front();
      delivered_ = nullptr;
    }
    if (receiving_count_ > 0) {
      if (const auto piece = arrived(peer); !piece.empty()) return piece;
    }
    while (true) {
      int any = 0;
      MPI_Message message = MPI_MESSAGE_NULL;
      MPI_Status status;
      MPI_Improbe(MPI_ANY_SOURCE, tag, communicator_, &any, &message, &status);
      if (any == 0) return {};
      int size = 0;
      MPI_Get_count(&status, MPI_BYTE, &size);
      const auto length = static_cast<std::size_t>(size);
      const auto source = static_cast<std::size_t>(status.MPI_SOURCE);
      std::deque<Receiving>& from = receiving_[source];
      if (length <= small_message && from.empty()) {
        MPI_Mrecv(small_.data(), size, MPI_BYTE, &message, MPI_STATUS_IGNORE);
        peer = source;
        return std::span{std::as_const(small_)}.first(length);
      }
      // A large one comes while others are looked at, for it may need its sender, who may be busy.
      from.emplace_back();
      Receiving& receiving = from.back();
      if (!spare_received_.empty()) {
        receiving.bytes = std::move(spare_received_.back());
        spare_received_.pop_back();
      }
      receiving.length = length;
      if (receiving.bytes.size() < length) receiving.bytes.resize(length);
      MPI_Imrecv(receiving.bytes.data(), size, MPI_BYTE, &message, &receiving.request);
      ++receiving_count_;
      if (const auto piece = arrived(peer); !piece.empty()) return piece;
    }
  }

  bool sending() const override { return !sending_.empty(); }

 private:
  static constexpr int tag = 0x7079;
  static constexpr std::size_t largest_message = std::size_t{1} << 29;
  static constexpr std::size_t small_message = std::size_t{1} << 12;  // that has arrived with its head
  static constexpr std::size_t most_spare = 64;
  static constexpr std::size_t largest_spare = std::size_t{1} << 22;

  struct Sending {
    Bytes bytes;
    std::vector<MPI_Request> requests;
  };
  struct Receiving {
    Bytes bytes;  // at least so many
    std::size_t length = 0;
    MPI_Request request = MPI_REQUEST_NULL;
  };

  void test_sent() {
    for (std::size_t i = 0; i < sending_.size();) {
      Sending& message = sending_[i];
      int done = 0;
      MPI_Testall(static_cast<int>(message.requests.size()), message.requests.data(), &done, MPI_STATUSES_IGNORE);
      if (done == 0) {
        ++i;
        if (i >= looked_at) return;
        continue;
      }
      spare(std::move(message.bytes));
      if (i == 0) {
        sending_.pop_front();
      } else {
        sending_.erase(sending_.begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
  }

  /// The first message of a rank, in the order that they were sent, if it is whole.
  std::span<const std::byte> arrived(std::size_t& peer) {
    for (std::size_t i = 0; i < receiving_.size(); ++i) {
      std::deque<Receiving>& from = receiving_[i];
      if (from.empty()) continue;
      int done = 0;
      MPI_Test(&from.front().request, &done, MPI_STATUS_IGNORE);
      if (done == 0) continue;
      --receiving_count_;
      delivered_ = &from;
      peer = i;
      return std::span{std::as_const(from.front().bytes)}.first(from.front().length);
    }
    return {};
  }

  void spare(Bytes bytes) {
    if (spare_.size() >= most_spare || bytes.capacity() > largest_spare) return;
    bytes.clear();
    spare_.push_back(std::move(bytes));
  }
  Bytes spare_buffer() {
    if (spare_.empty()) return {};
    Bytes bytes = std::move(spare_.back());
    spare_.pop_back();
    return bytes;
  }

  static constexpr std::size_t looked_at = 16;

  MPI_Comm communicator_;
  std::deque<Sending> sending_;
  std::vector<std::deque<Receiving>> receiving_;  // by rank
  std::size_t receiving_count_ = 0;
  std::deque<Receiving>* delivered_ = nullptr;  // whose first message was given out last
  Bytes small_;
  std::vector<Bytes> spare_;
  std::vector<Bytes> spare_received_;  // with their contents: to clear them would take time
};

}  // namespace pyarallel::detail
