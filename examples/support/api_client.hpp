// A small HTTP client that any number of threads may share. Errors are thrown as
// pyarallel::HttpError, which carries what Retry::for_http() needs: the status and Retry-After.
#pragma once

#include <fmt/format.h>
#include <httplib.h>

#include <memory>
#include <mutex>
#include <pyarallel.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace demo {

class ApiClient {
 public:
  explicit ApiClient(int port) : port_(port) {}

  int port() const { return port_; }

  std::string get(const std::string& path) {
    return call(path, [&](httplib::Client& connection) { return connection.Get(path); });
  }
  std::string del(const std::string& path) {
    return call(path, [&](httplib::Client& connection) { return connection.Delete(path); });
  }

 private:
  // One httplib::Client is one connection, and serves one call at a time. So each call borrows an
  // idle one, or opens one; a connection that broke is not given back.
  template <class Send>
  std::string call(const std::string& path, Send send) {
    auto connection = borrow();
    const httplib::Result response = send(*connection);
    if (!response) throw std::runtime_error(path + ": " + httplib::to_string(response.error()));
    give_back(std::move(connection));
    if (response->status >= 400) {
      throw pyarallel::HttpError(response->status, response->get_header_value("Retry-After"),
                                 fmt::format("{}: HTTP {}", path, response->status));
    }
    return response->body;
  }

  std::unique_ptr<httplib::Client> borrow() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) return connect();
    auto connection = std::move(idle_.back());
    idle_.pop_back();
    return connection;
  }

  void give_back(std::unique_ptr<httplib::Client> connection) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(connection));
  }

  std::unique_ptr<httplib::Client> connect() const {
    auto connection = std::make_unique<httplib::Client>("127.0.0.1", port_);
    connection->set_keep_alive(true);
    connection->set_tcp_nodelay(true);  // a small request should not wait for company
    connection->set_connection_timeout(10);
    connection->set_read_timeout(10);
    return connection;
  }

  int port_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<httplib::Client>> idle_;
};

}  // namespace demo
