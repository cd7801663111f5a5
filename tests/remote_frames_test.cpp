// What goes between rank 0 and the others: streams of frames, links that carry them, and the pause between two looks.
#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/process/descriptor.hpp"
#include "pyarallel/detail/remote/frames.hpp"
#include "pyarallel/detail/remote/link.hpp"
#include "pyarallel/detail/remote/socket_link.hpp"
#include "support/catch.hpp"
#include "support/wait.hpp"
#include "support/watchdog.hpp"

using pyarallel::Bytes;
using pyarallel::Duration;
using pyarallel::detail::append_frame;
using pyarallel::detail::append_frame_of;
using pyarallel::detail::Descriptor;
using pyarallel::detail::FrameSplitter;
using pyarallel::detail::PollPause;
using pyarallel::detail::RemoteFrame;
using pyarallel::detail::RemoteHead;
using pyarallel::detail::SocketLink;
using pyarallel::detail::TimePoint;
using support::wait_until;
using support::Watchdog;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t head_size = sizeof(RemoteHead);
constexpr std::size_t KiB = std::size_t{1} << 10;
constexpr std::size_t MiB = std::size_t{1} << 20;

/// Bytes of which each says where it is, and in which message.
Bytes pattern(std::size_t size, std::size_t number) {
  Bytes bytes(size);
  for (std::size_t at = 0; at < size; ++at)
    bytes[at] = static_cast<std::byte>((at * 31 + at / 251 + number * 17) % 256);
  return bytes;
}

bool same(std::span<const std::byte> a, std::span<const std::byte> b) { return std::ranges::equal(a, b); }

bool same(const RemoteHead& a, const RemoteHead& b) {
  return a.kind == b.kind && a.place == b.place && a.attempt == b.attempt && a.count == b.count && a.index == b.index &&
         a.number == b.number && a.length == b.length;
}

struct Frame {
  RemoteHead head;
  Bytes bytes;
};

bool same(const std::vector<Frame>& a, const std::vector<Frame>& b) {
  return std::ranges::equal(a, b,
                            [](const Frame& x, const Frame& y) { return same(x.head, y.head) && x.bytes == y.bytes; });
}

/// Frames with bodies of these sizes, each with a head of its own.
std::vector<Frame> frames_of(std::initializer_list<std::size_t> sizes) {
  std::vector<Frame> frames;
  for (const std::size_t size : sizes) {
    const auto number = static_cast<std::uint32_t>(frames.size());
    frames.push_back({{.kind = static_cast<RemoteFrame>(number % 14),
                       .place = number + 1,
                       .attempt = number + 2,
                       .count = number + 3,
                       .index = std::uint64_t{1} << (40 + number % 20),
                       .number = ~std::uint64_t{number},
                       .length = size},
                      pattern(size, number)});
  }
  return frames;
}

Bytes stream_of(const std::vector<Frame>& frames) {
  Bytes stream;
  for (const Frame& frame : frames) append_frame(stream, frame.head, frame.bytes);
  return stream;
}

/// A reader of a stream, which looks at each frame where its reader's user would: after the piece.
class Reader {
 public:
  /// False: something that feed() promises is not so.
  bool feed(std::span<const std::byte> piece) {
    // Only as long as the piece, so that a sanitizer sees who reads beyond it.
    const Bytes own(piece.begin(), piece.end());
    std::vector<std::pair<RemoteHead, std::span<const std::byte>>> seen;
    const bool kept = splitter_.feed(
        own, [&](const RemoteHead& head, std::span<const std::byte> bytes) { seen.emplace_back(head, bytes); });
    bool any_elsewhere = false;
    bool right = true;
    for (std::size_t i = 0; i < seen.size(); ++i) {
      const auto& [head, bytes] = seen[i];
      right = right && head.length == bytes.size();
      const bool elsewhere = !is_part(bytes, own);
      // Only what began in an earlier piece is pieced together.
      right = right && (!elsewhere || i == 0);
      any_elsewhere = any_elsewhere || elsewhere;
      frames_.push_back({head, Bytes(bytes.begin(), bytes.end())});
    }
    return right && kept == any_elsewhere;
  }
  const std::vector<Frame>& frames() const { return frames_; }

 private:
  static bool is_part(std::span<const std::byte> part, std::span<const std::byte> all) {
    const std::less_equal<> before;
    return before(all.data(), part.data()) && before(part.data() + part.size(), all.data() + all.size());
  }

  FrameSplitter splitter_;
  std::vector<Frame> frames_;
};

/// Cut in pieces that end at these places, the stream has these frames.
bool comes_whole(const std::vector<Frame>& frames, std::span<const std::byte> stream,
                 std::span<const std::size_t> cuts) {
  Reader reader;
  std::size_t at = 0;
  bool right = true;
  for (const std::size_t cut : cuts) {
    right = right && reader.feed(stream.subspan(at, cut - at));
    at = cut;
  }
  return right && reader.feed(stream.subspan(at)) && same(reader.frames(), frames);
}

bool comes_whole_in_pieces_of(const std::vector<Frame>& frames, std::span<const std::byte> stream, std::size_t size) {
  std::vector<std::size_t> cuts;
  for (std::size_t at = size; at < stream.size(); at += size) cuts.push_back(at);
  return comes_whole(frames, stream, cuts);
}

struct Boom {};

/// Links to the same number of peers, and theirs.
struct Star {
  explicit Star(std::size_t count) {
    std::vector<Descriptor> ours;
    for (std::size_t i = 0; i < count; ++i) {
      auto [here, there] = SocketLink::pair();
      ours.push_back(std::move(here));
      std::vector<Descriptor> its;
      its.push_back(std::move(there));
      peers.push_back(std::make_unique<SocketLink>(std::move(its)));
    }
    center = std::make_unique<SocketLink>(std::move(ours));
  }
  std::unique_ptr<SocketLink> center;
  std::vector<std::unique_ptr<SocketLink>> peers;
};

/// A copy is sent; true if the one that was given away is empty then.
bool send(SocketLink& link, std::size_t peer, std::span<const std::byte> message) {
  Bytes bytes(message.begin(), message.end());
  link.send(peer, bytes);
  return bytes.empty();
}

/// Adds what has come from each peer. False: nothing.
bool receive(SocketLink& link, std::vector<Bytes>& received) {
  std::size_t peer = received.size();
  const auto piece = link.receive(peer);
  if (piece.empty()) return false;
  received.at(peer).insert(received.at(peer).end(), piece.begin(), piece.end());
  return true;
}

/// Ends the program with SIGPIPE where that is sent, whoever ignored it before.
class SigpipeKills {
 public:
  SigpipeKills() : before_(std::signal(SIGPIPE, SIG_DFL)) {}
  ~SigpipeKills() { std::signal(SIGPIPE, before_); }
  SigpipeKills(const SigpipeKills&) = delete;
  SigpipeKills& operator=(const SigpipeKills&) = delete;

 private:
  void (*before_)(int);
};

/// No file can be opened.
class NoFiles {
 public:
  NoFiles() {
    getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit none{0, before_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &none);
  }
  ~NoFiles() { setrlimit(RLIMIT_NOFILE, &before_); }
  NoFiles(const NoFiles&) = delete;
  NoFiles& operator=(const NoFiles&) = delete;

 private:
  rlimit before_{};
};

}  // namespace

// Frames ----------------------------------------------------------------------------------------------

TEST_CASE("Frames come whole from a stream that is cut in two anywhere") {
  const auto frames = frames_of({0, 1, 5, 0, 0, 70, 3, 0});
  const Bytes stream = stream_of(frames);
  std::size_t wrong = 0;
  for (std::size_t cut = 0; cut <= stream.size(); ++cut) {
    if (!comes_whole(frames, stream, std::array{cut})) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("Frames come whole from a stream that is cut in three anywhere, also where pieces are empty") {
  const auto frames = frames_of({0, 1, 0, 45});
  const Bytes stream = stream_of(frames);
  std::size_t wrong = 0;
  for (std::size_t first = 0; first <= stream.size(); ++first) {
    for (std::size_t second = first; second <= stream.size(); ++second) {
      if (!comes_whole(frames, stream, std::array{first, second})) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("Frames come whole from pieces of any one size") {
  const auto frames = frames_of({0, 1, 5, 0, 0, 300, 3, 0, 41, 40, 39, 0});
  const Bytes stream = stream_of(frames);
  std::size_t wrong = 0;
  for (std::size_t size = 1; size <= stream.size(); ++size) {
    if (!comes_whole_in_pieces_of(frames, stream, size)) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("Frames that are large come whole between others that are empty") {
  const auto frames = frames_of({0, MiB, 0, 0, MiB + 1, 3, 0});
  const Bytes stream = stream_of(frames);
  for (const std::size_t size : {head_size - 1, head_size, head_size + 1, 4 * KiB + 1, 256 * KiB, MiB, MiB + head_size,
                                 MiB + 2 * head_size, 2 * MiB, stream.size()}) {
    INFO(size);
    CHECK(comes_whole_in_pieces_of(frames, stream, size));
  }
  // Around each end of a frame and of its head.
  std::size_t at = 0;
  std::size_t wrong = 0;
  for (const Frame& frame : frames) {
    for (const std::size_t middle : {at, at + head_size}) {
      for (const std::size_t cut : {middle - std::min<std::size_t>(middle, 1), middle, middle + 1}) {
        if (!comes_whole(frames, stream, std::array{std::min(cut, stream.size())})) ++wrong;
      }
    }
    at += head_size + frame.bytes.size();
  }
  CHECK(wrong == 0);
}

TEST_CASE("Frames come whole from a large one that comes byte by byte") {
  const auto frames = frames_of({20 * KiB, 0, 1});
  CHECK(comes_whole_in_pieces_of(frames, stream_of(frames), 1));
}

TEST_CASE("Frames that are in one piece are used in their order, in place") {
  const auto frames = frames_of({2, 0, 7});
  const Bytes stream = stream_of(frames);
  FrameSplitter splitter;
  std::vector<const std::byte*> places;
  const bool kept = splitter.feed(
      stream, [&](const RemoteHead&, std::span<const std::byte> bytes) { places.push_back(bytes.data()); });
  CHECK_FALSE(kept);
  const std::byte* const begin = stream.data();
  CHECK(places == std::vector{begin + head_size, begin + 2 * head_size + 2, begin + 3 * head_size + 2});
}

TEST_CASE("Frames that end in a piece are the splitter's own, and those behind are the piece's") {
  const auto frames = frames_of({100, 5, 60});
  const Bytes stream = stream_of(frames);
  FrameSplitter splitter;
  std::vector<std::span<const std::byte>> seen;
  const auto use = [&](const RemoteHead&, std::span<const std::byte> bytes) { seen.push_back(bytes); };

  // A part of a frame is the splitter's too, but nothing of it is used.
  Bytes first(stream.begin(), stream.begin() + 50);
  CHECK_FALSE(splitter.feed(first, use));
  CHECK(seen.empty());
  first = {};

  // Up to the middle of the third.
  Bytes second(stream.begin() + 50, stream.end() - 10);
  CHECK(splitter.feed(second, use));
  REQUIRE(seen.size() == 2);
  CHECK(same(seen[1], frames[1].bytes));
  std::ranges::fill(second, std::byte{0});
  second = {};
  CHECK(same(seen[0], frames[0].bytes));  // until the next call

  seen.clear();
  CHECK(splitter.feed(std::span{stream}.last(10), use));
  REQUIRE(seen.size() == 1);
  CHECK(same(seen[0], frames[2].bytes));

  // Nothing is left of all that.
  seen.clear();
  CHECK_FALSE(splitter.feed({}, use));
  CHECK_FALSE(splitter.feed(stream, use));
  CHECK(seen.size() == 3);
}

TEST_CASE("Frames of which nothing more comes are not used") {
  const auto frames = frames_of({3});
  const Bytes stream = stream_of(frames);
  for (std::size_t size = 0; size < stream.size(); ++size) {
    Reader reader;
    CHECK(reader.feed(std::span{stream}.first(size)));
    CHECK(reader.feed({}));
    CHECK(reader.frames().empty());
  }
}

TEST_CASE("A frame is appended behind others, with the length of its bytes whatever its head says") {
  Bytes out;
  append_frame(out, {.kind = RemoteFrame::stop, .number = 1, .length = 99});
  const Bytes before = out;
  const Bytes body = pattern(5000, 1);
  append_frame_of(out, {.kind = RemoteFrame::values, .index = 7, .length = 99}, [&](Bytes& bytes) {
    for (const std::byte& each : body) pyarallel::detail::append(bytes, &each, 1);
  });
  append_frame_of(out, {.kind = RemoteFrame::ended, .length = 99}, [](Bytes&) {});
  append_frame(out, {.kind = RemoteFrame::failure, .length = 99}, body);
  CHECK(same(std::span{out}.first(before.size()), before));

  Reader reader;
  CHECK(reader.feed(out));
  const std::vector<Frame> expected{{{.kind = RemoteFrame::stop, .number = 1}, {}},
                                    {{.kind = RemoteFrame::values, .index = 7, .length = 5000}, body},
                                    {{.kind = RemoteFrame::ended}, {}},
                                    {{.kind = RemoteFrame::failure, .length = 5000}, body}};
  CHECK(same(reader.frames(), expected));
}

TEST_CASE("A frame whose bytes cannot be written leaves what was there as it was") {
  for (const std::size_t size : {std::size_t{0}, std::size_t{3}, 10 * KiB}) {
    for (const bool first : {true, false}) {
      Bytes out;
      if (!first) append_frame(out, {.kind = RemoteFrame::values, .index = 3}, pattern(100, 2));
      const Bytes before = out;
      CHECK_THROWS_AS(append_frame_of(out, {.kind = RemoteFrame::failure},
                                      [&](Bytes& bytes) {
                                        const Bytes some = pattern(size, 9);
                                        bytes.insert(bytes.end(), some.begin(), some.end());
                                        throw Boom{};
                                      }),
                      Boom);
      CHECK(out == before);
      // And frames can be appended as before.
      append_frame_of(out, {.kind = RemoteFrame::ended}, [](Bytes&) {});
      CHECK(out.size() == before.size() + head_size);
      Reader reader;
      CHECK(reader.feed(out));
      CHECK(reader.frames().size() == (first ? 1 : 2));
    }
  }
}

// Sockets ---------------------------------------------------------------------------------------------

TEST_CASE("A link has nothing to receive or to send at first") {
  Star star{2};
  std::size_t peer = 99;
  CHECK(star.center->receive(peer).empty());
  CHECK(peer == 99);
  CHECK_FALSE(star.center->sending());
  CHECK_FALSE(star.center->closed());
  CHECK(send(*star.center, 1, {}));
  CHECK_FALSE(star.center->sending());
  CHECK(star.peers[1]->receive(peer).empty());
}

TEST_CASE("A link without peers receives nothing") {
  SocketLink link{{}};
  std::size_t peer = 0;
  CHECK(link.receive(peer).empty());
  CHECK_FALSE(link.sending());
  CHECK_FALSE(link.closed());
}

TEST_CASE("A link says from which peer a piece is, and sends to the one that is meant") {
  constexpr std::size_t count = 5;
  Star star{count};
  std::vector<Bytes> received(count);
  for (const std::size_t i : {3U, 0U, 4U, 1U, 2U}) CHECK(send(*star.peers[i], 0, pattern(100 + i, i)));
  while (receive(*star.center, received)) {
  }
  for (std::size_t i = 0; i < count; ++i) {
    CHECK(received[i] == pattern(100 + i, i));
    CHECK(send(*star.center, i, pattern(200 + i, i)));
  }
  CHECK_FALSE(star.center->sending());
  for (std::size_t i = 0; i < count; ++i) {
    std::vector<Bytes> its(1);
    while (receive(*star.peers[i], its)) {
    }
    CHECK(its[0] == pattern(200 + i, i));
  }
}

TEST_CASE("A peer that sends all the time keeps no other from being heard") {
  Star star{3};
  std::vector<Bytes> received(3);
  CHECK(send(*star.peers[0], 0, pattern(8 * MiB, 0)));
  CHECK(receive(*star.center, received));
  for (const std::size_t i : {1U, 2U}) CHECK(send(*star.peers[i], 0, pattern(10, i)));
  for (int i = 0; i < 3; ++i) {
    std::vector<Bytes> nothing(1);
    CHECK_FALSE(receive(*star.peers[0], nothing));  // goes on with sending
    CHECK(star.peers[0]->sending());
    CHECK(receive(*star.center, received));
  }
  CHECK(received[1] == pattern(10, 1));
  CHECK(received[2] == pattern(10, 2));
}

TEST_CASE("Messages much larger than a socket's buffer pass each other while both sides only poll") {
  const Watchdog watchdog;
  Star star{1};
  const Bytes there = pattern(12 * MiB, 1);
  const Bytes back = pattern(9 * MiB + 1, 2);
  CHECK(send(*star.center, 0, there));
  CHECK(send(*star.peers[0], 0, back));
  CHECK(star.center->sending());
  CHECK(star.peers[0]->sending());
  std::vector<Bytes> at_center(1);
  std::vector<Bytes> at_peer(1);
  wait_until([&] {
    receive(*star.center, at_center);
    receive(*star.peers[0], at_peer);
    return !star.center->sending() && !star.peers[0]->sending() && at_center[0].size() >= back.size() &&
           at_peer[0].size() >= there.size();
  });
  CHECK(at_center[0] == back);
  CHECK(at_peer[0] == there);
  CHECK_FALSE(star.center->closed());
  CHECK_FALSE(star.peers[0]->closed());
  // It is as new.
  CHECK(send(*star.center, 0, pattern(10, 3)));
  CHECK_FALSE(star.center->sending());
  at_peer[0].clear();
  CHECK(receive(*star.peers[0], at_peer));
  CHECK(at_peer[0] == pattern(10, 3));
}

TEST_CASE("A link stops to say that it is sending when the last byte is on its way") {
  Star star{1};
  CHECK(send(*star.center, 0, pattern(2 * MiB, 1)));
  REQUIRE(star.center->sending());
  std::vector<Bytes> at_center(1);
  std::vector<Bytes> at_peer(1);
  while (star.center->sending()) {
    CHECK_FALSE(receive(*star.center, at_center));
    receive(*star.peers[0], at_peer);
    REQUIRE(at_peer[0].size() <= 2 * MiB);
  }
  // Nobody polls the sender any more.
  while (receive(*star.peers[0], at_peer)) {
  }
  CHECK(at_peer[0] == pattern(2 * MiB, 1));
}

TEST_CASE("Messages to one peer keep their order, also behind one that is not sent yet") {
  const Watchdog watchdog;
  constexpr std::size_t count = 3;
  Star star{count};
  std::vector<Bytes> sent(count);
  std::vector<Bytes> sent_back(count);
  std::vector<Bytes> at_center(count);
  std::vector<std::vector<Bytes>> at_peers(count, std::vector<Bytes>(1));
  const auto poll = [&] {
    bool any = receive(*star.center, at_center);
    for (std::size_t i = 0; i < count; ++i) any = receive(*star.peers[i], at_peers[i]) || any;
    return any;
  };
  std::size_t number = 0;
  for (int round = 0; round < 30; ++round) {
    for (std::size_t i = 0; i < count; ++i) {
      for (const std::size_t size : {std::size_t{1}, 700 * KiB * (number % 4 == 0), std::size_t{0}, 3 * KiB}) {
        const Bytes message = pattern(size, ++number);
        sent[i].insert(sent[i].end(), message.begin(), message.end());
        CHECK(send(*star.center, i, message));
        const Bytes answer = pattern(size / 2 + 1, ++number);
        sent_back[i].insert(sent_back[i].end(), answer.begin(), answer.end());
        CHECK(send(*star.peers[i], 0, answer));
      }
    }
    poll();
  }
  wait_until([&] {
    while (poll()) {
    }
    return std::ranges::none_of(star.peers, [](const auto& link) { return link->sending(); }) &&
           !star.center->sending() && !poll();
  });
  for (std::size_t i = 0; i < count; ++i) {
    CHECK(at_center[i] == sent_back[i]);
    CHECK(at_peers[i][0] == sent[i]);
  }
}

TEST_CASE("Frames come whole over a link from several peers at once") {
  const Watchdog watchdog;
  const auto frames = frames_of({0, 5, 600 * KiB, 0, 1, 300 * KiB, 7, 0});
  constexpr std::size_t count = 3;
  Star star{count};
  for (auto& peer : star.peers) CHECK(send(*peer, 0, stream_of(frames)));
  std::vector<Reader> readers(count);
  std::size_t wrong = 0;
  wait_until([&] {
    for (auto& peer : star.peers) {
      std::size_t from = 0;
      if (!peer->receive(from).empty()) ++wrong;
    }
    std::size_t peer = 0;
    const auto piece = star.center->receive(peer);
    if (!piece.empty() && !readers.at(peer).feed(piece)) ++wrong;
    return std::ranges::all_of(readers, [&](const Reader& reader) { return reader.frames().size() >= frames.size(); });
  });
  CHECK(wrong == 0);
  for (const Reader& reader : readers) CHECK(same(reader.frames(), frames));
}

TEST_CASE("A link that is closed is seen after what it sent has come") {
  Star star{2};
  std::vector<Bytes> received(2);
  CHECK(send(*star.peers[0], 0, pattern(100, 1)));
  star.peers[0].reset();
  CHECK_FALSE(star.center->closed());
  CHECK(receive(*star.center, received));
  CHECK(received[0] == pattern(100, 1));
  CHECK_FALSE(receive(*star.center, received));
  CHECK(star.center->closed());
  // The other is still there.
  CHECK(send(*star.peers[1], 0, pattern(50, 2)));
  CHECK(receive(*star.center, received));
  CHECK(received[1] == pattern(50, 2));
  CHECK(send(*star.center, 1, pattern(60, 3)));
  std::vector<Bytes> its(1);
  CHECK(receive(*star.peers[1], its));
  CHECK(its[0] == pattern(60, 3));
  CHECK(star.center->closed());
}

TEST_CASE("A peer that is gone ends what is being sent to it, and nobody dies of it") {
  const SigpipeKills sigpipe_kills;
  const Watchdog watchdog;
  Star star{2};
  std::vector<Bytes> received(2);
  CHECK(send(*star.center, 0, pattern(8 * MiB, 1)));
  CHECK(send(*star.center, 1, pattern(3 * MiB, 2)));
  CHECK(star.center->sending());
  CHECK_FALSE(star.center->closed());
  const bool read_some = GENERATE(false, true);
  std::vector<Bytes> its(1);
  if (read_some) CHECK(receive(*star.peers[0], its));
  star.peers[0].reset();
  CHECK_FALSE(receive(*star.center, received));
  CHECK(star.center->closed());
  CHECK(star.center->sending());  // to the other
  CHECK(send(*star.center, 0, pattern(8 * MiB, 3)));
  its[0].clear();
  while (star.center->sending()) {
    CHECK_FALSE(receive(*star.center, received));
    receive(*star.peers[1], its);
  }
  while (receive(*star.peers[1], its)) {
  }
  CHECK(its[0] == pattern(3 * MiB, 2));
}

TEST_CASE("A peer that is gone can be sent to, and nobody dies of it") {
  const SigpipeKills sigpipe_kills;
  Star star{1};
  star.peers[0].reset();
  for (int i = 0; i < 3; ++i) {
    CHECK(send(*star.center, 0, pattern(100, 1)));
    CHECK(star.center->closed());
    CHECK_FALSE(star.center->sending());
  }
  std::vector<Bytes> received(1);
  CHECK_FALSE(receive(*star.center, received));
}

TEST_CASE("A peer that did not read what came before it went is gone all the same") {
  const SigpipeKills sigpipe_kills;
  Star star{1};
  CHECK(send(*star.center, 0, pattern(100, 1)));
  CHECK_FALSE(star.center->sending());
  star.peers[0].reset();
  // The system says first that the connection was reset, and only then that it is at its end.
  std::vector<Bytes> received(1);
  wait_until([&] { return !receive(*star.center, received) && star.center->closed(); });
  CHECK(received[0].empty());
}

TEST_CASE("A socket that cannot be made is an error of the system") {
  // UndefinedBehaviorSanitizer needs a file of its own for the first look at a type: here is the one of its category.
  const std::system_error looked_at(EMFILE, std::generic_category());
  std::optional<std::error_code> error;
  try {
    const NoFiles no_files;
    SocketLink::pair();
  } catch (const std::system_error& thrown) {  // there are files again
    error = thrown.code();
  }
  CHECK(error == std::error_code(EMFILE, std::generic_category()));
}

TEST_CASE("A socket is not inherited by a program that is started") {
  const auto ends = SocketLink::pair();
  for (const Descriptor& end : ends) CHECK((fcntl(end.get(), F_GETFD) & FD_CLOEXEC) != 0);
}

// Pauses ----------------------------------------------------------------------------------------------

TEST_CASE("A pause between looks is none at first, then longer and longer up to a millisecond") {
  PollPause pause;
  for (int round = 0; round < 3; ++round) {
    CHECK(pause.next() == Duration::zero());
    Duration last = Duration::zero();
    bool shorter = false;
    bool neither = false;
    wait_until([&] {
      const Duration next = pause.next();
      shorter = shorter || next < last;
      neither = neither || (next != Duration::zero() && next < 50us) || next > 1ms;
      last = next;
      return next == 1ms;
    });
    CHECK_FALSE(shorter);
    CHECK_FALSE(neither);
    CHECK(pause.next() == 1ms);
    pause.reset();
  }
}

TEST_CASE("A pause ends whenever it is due") {
  PollPause pause;
  for (const bool after_a_while : {false, true}) {
    if (after_a_while) wait_until([&] { return pause.next() == 1ms; });
    for (const Duration wait : {Duration{-1h}, Duration{0}, Duration{100us}, Duration{1ms}, Duration{100h}}) {
      pause.pass(pyarallel::detail::SteadyClock{}.now() + wait);
    }
    pause.pass(TimePoint::max());
  }
  CHECK(pause.next() == 1ms);
}

TEST_CASE("A pause is passed again and again until it is due") {
  const Watchdog watchdog;
  PollPause pause;
  const TimePoint due = PollPause::clock::now() + 5ms;
  while (PollPause::clock::now() < due) pause.pass(due);
  CHECK(pause.next() > Duration::zero());
}
