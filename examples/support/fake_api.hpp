// A metered HTTP API on the loopback interface, in a process of its own, so that what it measures
// owes nothing to the program that it serves.
//
//   GET /items/<id>        metered: a quick answer, or 429 with Retry-After
//   GET /slow/<ms>/<id>    unmetered: answers after so many milliseconds
//   GET /dead/<id>         always 500
//   GET /ledger            what was measured since the last DELETE
//   DELETE /ledger         begin afresh, with a full quota
#pragma once

#include <httplib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>

#include "child_process.hpp"
#include "quota.hpp"

namespace demo {

// The server's side: lives in the child process only.
class FakeApiServer {
 public:
  explicit FakeApiServer(Quota quota) : quota_(quota), gate_(quota) {
    // A connection that is kept alive occupies its thread: the pool bounds how many calls can be
    // under way at once.
    server_.new_task_queue = [] { return new httplib::ThreadPool(server_threads); };
    server_.set_keep_alive_max_count(1'000'000);
    server_.set_keep_alive_timeout(60);
    server_.set_tcp_nodelay(true);
    server_.set_socket_options([this](socket_t socket) { listening_socket_ = socket; });
    add_routes();
  }

  // Returns the port that the system chose, or -1.
  int bind() {
    const int port = server_.bind_to_any_port("127.0.0.1");
    // httplib may listen with room for 5 waiting connections. When 100 clients knock at once, the
    // kernel would drop the rest, and each of those would knock again only after a second.
    if (port > 0) ::listen(listening_socket_, waiting_connections);
    return port;
  }

  void serve() { server_.listen_after_bind(); }

 private:
  static constexpr std::size_t server_threads = 160;
  static constexpr int waiting_connections = 256;

  void add_routes() {
    server_.Get(R"(/items/(\d+))", [this](const httplib::Request& request, httplib::Response& response) {
      metered_item(request, request.matches[1], response);
    });
    server_.Get(R"(/slow/(\d+)/(\d+))", [this](const httplib::Request& request, httplib::Response& response) {
      slow_item(request, std::chrono::milliseconds(std::stoi(request.matches[1])), request.matches[2], response);
    });
    server_.Get(R"(/dead/(\d+))", [this](const httplib::Request& request, httplib::Response& response) {
      const Visit visit(*this, request.path);
      response.status = 500;
    });
    server_.Get("/ledger", [this](const httplib::Request&, httplib::Response& response) {
      const std::lock_guard lock(mutex_);
      response.set_content(keeper_.ledger().to_text(), "text/plain");
    });
    server_.Delete("/ledger", [this](const httplib::Request&, httplib::Response&) {
      const std::lock_guard lock(mutex_);
      gate_ = QuotaGate(quota_);
      keeper_ = LedgerKeeper();
    });
  }

  void metered_item(const httplib::Request& request, const std::string& id, httplib::Response& response) {
    const Visit visit(*this, request.path);
    if (const auto wait = visit.refused()) {
      response.status = 429;
      response.set_header("Retry-After", std::to_string(wait->count()));
      return;
    }
    // Calls that differ in length do not march in step.
    std::this_thread::sleep_for(std::chrono::milliseconds(20 + std::stoi(id) * 37 % 41));
    response.set_content("item " + id, "text/plain");
  }

  void slow_item(const httplib::Request& request, std::chrono::milliseconds time, const std::string& id,
                 httplib::Response& response) {
    const Visit visit(*this, request.path);
    std::this_thread::sleep_for(time);
    response.set_content("item " + id, "text/plain");
  }

  // A request's stay, from its arrival to its answer, for the ledger.
  class Visit {
   public:
    Visit(FakeApiServer& api, const std::string& path) : api_(api) {
      const std::lock_guard lock(api_.mutex_);
      api_.keeper_.arrived(path, Clock::now());
    }
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;
    ~Visit() {
      const std::lock_guard lock(api_.mutex_);
      api_.keeper_.answered();
    }
    // Nothing if the call is within the quota, else for how long the caller should wait.
    std::optional<std::chrono::seconds> refused() const {
      const std::lock_guard lock(api_.mutex_);
      const auto wait = api_.gate_.refuse(Clock::now());
      if (wait) api_.keeper_.refused();
      return wait;
    }

   private:
    FakeApiServer& api_;
  };

  Quota quota_;
  std::mutex mutex_;
  QuotaGate gate_;
  LedgerKeeper keeper_;
  httplib::Server server_;
  socket_t listening_socket_ = INVALID_SOCKET;
};

// The caller's side: starts the server's process, and ends it when destroyed.
class FakeApi {
 public:
  // To be called before the program has threads (it forks).
  explicit FakeApi(Quota quota) : process_([&] { serve(quota); }) {
    // Only the child may hold the end that it writes to: if it dies, the read below ends.
    port_pipe_.write_end.close();
    lifeline_.read_end.close();
    port_ = read_port();
  }

  int port() const { return port_; }
  pid_t process_id() const { return process_.id(); }

 private:
  void serve(Quota quota) {
    // What ends the caller ends this process too, see below: a Ctrl-C, which the terminal sends to both, should not
    // end it before the caller's last answers are there.
    for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, SIG_IGN);
    port_pipe_.read_end.close();
    lifeline_.write_end.close();
    FakeApiServer server(quota);
    const int port = server.bind();
    if (port <= 0 || !port_pipe_.send(port)) return;
    std::thread([this] { exit_with_parent(); }).detach();
    server.serve();
  }

  // Nobody writes to the lifeline. Reading from it ends when the parent, which holds the other end,
  // is gone, however it went.
  void exit_with_parent() {
    char byte;
    lifeline_.receive(byte);
    ::_exit(0);
  }

  int read_port() {
    int port = 0;
    if (!port_pipe_.receive(port)) {
      throw std::runtime_error("the fake API did not start: it could not listen on a port of 127.0.0.1");
    }
    return port;
  }

  Pipe port_pipe_;
  Pipe lifeline_;
  ChildProcess process_;
  int port_ = 0;
};

}  // namespace demo
