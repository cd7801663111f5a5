// A link over connected stream sockets, one for each peer.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/process/descriptor.hpp"
#include "pyarallel/detail/remote/link.hpp"

namespace pyarallel::detail {

class SocketLink final : public Link {
 public:
  /// Peer i is at the other end of sockets[i].
  explicit SocketLink(std::vector<Descriptor> sockets) : buffer_(std::size_t{1} << 18) {
    for (Descriptor& socket : sockets) peers_.push_back({std::move(socket), {}, 0});
  }

  /// The two ends of a connection. std::system_error if there can be no more.
  static std::array<Descriptor, 2> pair() {
    int ends[2] = {};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
      throw std::system_error(errno, std::generic_category(), "pyarallel: no socket can be made");
    }
    return {Descriptor{ends[0]}, Descriptor{ends[1]}};
  }

  void send(std::size_t peer, Bytes& bytes) override {
    Peer& to = peers_[peer];
    if (to.unsent.empty()) {
      to.unsent.swap(bytes);
      to.sent = 0;
    } else {
      append(to.unsent, bytes.data(), bytes.size());
      bytes.clear();
    }
    push(to);
  }

  /// Also when a peer has closed its end: see closed().
  std::span<const std::byte> receive(std::size_t& peer) override {
    for (Peer& each : peers_) push(each);
    for (std::size_t i = 0; i < peers_.size(); ++i) {
      next_ = (next_ + 1) % peers_.size();
      const ssize_t got = ::recv(peers_[next_].socket.get(), buffer_.data(), buffer_.size(), MSG_DONTWAIT);
      if (got == 0) closed_ = true;
      if (got <= 0) continue;
      peer = next_;
      return std::span{std::as_const(buffer_)}.first(static_cast<std::size_t>(got));
    }
    return {};
  }

  bool sending() const override {
    for (const Peer& peer : peers_) {
      if (!peer.unsent.empty()) return true;
    }
    return false;
  }

  /// A peer is gone.
  bool closed() const noexcept { return closed_; }

 private:
  struct Peer {
    Descriptor socket;
    Bytes unsent;
    std::size_t sent = 0;  // of those
  };

  void push(Peer& to) {
    while (to.sent < to.unsent.size()) {
      const auto rest = std::span{to.unsent}.subspan(to.sent);
      const ssize_t sent = ::send(to.socket.get(), rest.data(), rest.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent < 0) {
        if (errno == EINTR) continue;
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS) return;
        closed_ = true;
        break;
      }
      to.sent += static_cast<std::size_t>(sent);
    }
    to.unsent.clear();
    to.sent = 0;
  }

  std::vector<Peer> peers_;
  Bytes buffer_;
  std::size_t next_ = 0;
  bool closed_ = false;
};

}  // namespace pyarallel::detail
