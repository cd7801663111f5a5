// Several machines: the same call over MPI. CMake target pyarallel::mpi.
#pragma once

#include "pyarallel/detail/process/shared_memory.hpp"
#if !PYARALLEL_HAS_FORK
#error "pyarallel/mpi.hpp needs a POSIX system"
#endif

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "pyarallel/detail/mpi/build.hpp"
#include "pyarallel/detail/mpi/exit_guard.hpp"
#include "pyarallel/detail/mpi/helper.hpp"
#include "pyarallel/detail/mpi/launcher.hpp"
#include "pyarallel/detail/mpi/mpi_api.hpp"
#include "pyarallel/detail/mpi/mpi_link.hpp"
#include "pyarallel/detail/remote/rank.hpp"
#include "pyarallel/detail/remote/ranks.hpp"
#include "pyarallel/detail/remote/remote_call.hpp"
#include "pyarallel/executor.hpp"
#include "pyarallel/parallel_function.hpp"
#include "pyarallel/remote_executor.hpp"

namespace pyarallel::mpi {

/// How each rank runs its items. One rank for each machine is enough.
struct ClusterOptions {
  std::size_t threads_per_rank = 0;        ///< 0: as many as CPUs that the rank may use, unless there are processes.
  std::size_t processes_per_rank = 0;      ///< Instead of threads: a crash of the function costs one item there, too.
  std::function<void()> worker_init = {};  ///< Once in each worker of a run before its first item.
  /// With a communicator of the program's own: MPI is initialised already, so the processes that run the items are
  /// forked from one that uses MPI. Many transports bear that, and some (InfiniBand among them) do not.
  bool fork_after_mpi_init = false;
};

/// The ranks of an MPI job as an executor: `.executor = cluster`.
///
///     int main(int argc, char** argv) {
///       pyarallel::mpi::Cluster cluster{argc, argv, {.processes_per_rank = 8}};
///       auto parse = [&](const std::string& path) { return parse_file(path, config); };
///       if (cluster.serve(parse)) return 0;  // other ranks work in here until rank 0 is done
///       auto result = parallel_map(parse, paths, {.executor = cluster});
///     }
///
/// Started by `mpirun -n 5`, rank 0 goes on alone with main, hands out items, and does everything that concerns them
/// but running the function; ranks 1 to 4 run it, each with its own captures. Started without mpirun, items run in this
/// process, and MPI is never touched.
///
/// A rank that dies (a machine that is lost) ends the whole job, as is usual with MPI: see docs/clusters.md for what a
/// checkpoint does about that.
///
/// Runs take turns: calls from several threads wait for each other. Functions that run on other ranks may call
/// parallel_map with the cluster too: that runs on the rank where it is called.
class Cluster final : public RemoteExecutor {
 public:
  /// MPI is initialised by serve(), where it is needed, and finalised by the destructor.
  /// std::invalid_argument for both threads and processes.
  Cluster(int& argc, char**& argv, ClusterOptions options = {})
      : options_(std::move(options)), launch_(detail::launch_of_this_process()), argc_(&argc), argv_(&argv) {
    check_options();
  }

  /// On the ranks of a communicator, which is duplicated (all of them must come here), and not finalised. MPI must have
  /// been initialised with MPI_THREAD_FUNNELED at least. Where it was with MPI_THREAD_SERIALIZED, threads may take
  /// turns in using it, which makes tiny items quicker. std::invalid_argument for processes without
  /// fork_after_mpi_init.
  explicit Cluster(MPI_Comm communicator, ClusterOptions options = {}) : options_(std::move(options)) {
    check_options();
    if (options_.processes_per_rank > 0 && !options_.fork_after_mpi_init) {
      throw std::invalid_argument(
          "mpi::Cluster: processes_per_rank with a communicator forks processes after MPI was initialised, which some "
          "transports do not bear: use the constructor from argc and argv, threads_per_rank, or say "
          "fork_after_mpi_init = true");
    }
    MPI_Comm_dup(communicator, &communicator_);
    int rank = 0;
    int size = 0;
    MPI_Comm_rank(communicator_, &rank);
    MPI_Comm_size(communicator_, &size);
    launch_ = {.launched = true, .rank = rank, .size = size};
  }

  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  /// Rank 0 lets the others go.
  ~Cluster() override {
    if (link_ && rank() == 0) {
      for (const detail::RankPeer& peer : peers_) {
        Bytes quit;
        detail::append_frame(quit, {.kind = detail::RemoteFrame::quit});
        link_->send(peer.number, quit);
      }
    }
    link_.reset();
    if (communicator_ == MPI_COMM_NULL) return;
    MPI_Comm_free(&communicator_);
    if (finalize_) MPI_Finalize();
  }

  /// Call it once, on all ranks, with the same functions in the same order, before rank 0 uses the cluster. On rank 0
  /// it returns false at once. On other ranks it runs items until rank 0's cluster is gone, and returns true.
  /// `functions` must live as long as the cluster: functions, pointers to functions, function objects,
  /// and ParallelFunctions. What is called is this very object, so pass it, and no copy, to the call.
  /// std::runtime_error on rank 0 if a rank runs another program. std::logic_error if it is called again.
  template <class... F>
  bool serve(F&... functions) {
    return serve(std::vector<RemoteFunction>{detail::remote_function(functions)...});
  }

  /// 0 without mpirun.
  int rank() const noexcept { return launch_.rank.value_or(0); }
  /// 1 without mpirun.
  int size() const noexcept { return launch_.alone() ? 1 : launch_.size.value_or(1); }

  // RemoteExecutor -----------------------------------------------------------------------------------

  std::size_t slots() const override {
    if (is_local()) return workers_here();
    std::size_t slots = 0;
    for (const detail::RankPeer& peer : peers_) slots += peer.workers;
    return slots;
  }
  Executor kind() const override { return options_.processes_per_rank > 0 ? Executor::process : Executor::thread; }
  bool is_local() const override { return launch_.alone() || rank() != 0; }
  void check(const RemoteFunction& function) const override {
    if (!served_) throw std::invalid_argument("executor: mpi::Cluster: call serve() first, on all ranks");
    if (rank() == 0) ranks_.number_of(function);
  }
  std::unique_ptr<RemoteRun> begin(const RemoteJob& job) override { return ranks_.begin(*link_, peers_, job); }

 private:
  /// What a rank says of itself when it comes.
  struct Hello {
    std::uint64_t build = 0;
    std::uint64_t functions = 0;
    std::uint64_t workers = 0;
    std::uint64_t kind = 0;
    char host[MPI_MAX_PROCESSOR_NAME] = {};
  };

  void check_options() const {
    if (options_.threads_per_rank > 0 && options_.processes_per_rank > 0) {
      throw std::invalid_argument(
          fmt::format("mpi::Cluster: threads_per_rank or processes_per_rank, not both, got {} and {}",
                      options_.threads_per_rank, options_.processes_per_rank));
    }
  }

  std::size_t workers_here() const {
    if (options_.processes_per_rank > 0) return options_.processes_per_rank;
    return options_.threads_per_rank > 0 ? options_.threads_per_rank : available_parallelism();
  }

  bool serve(std::vector<RemoteFunction> functions) {
    if (std::exchange(served_, true))
      throw std::logic_error("mpi::Cluster: serve() is called once, with all functions");
    ranks_.serve(std::move(functions));
    if (launch_.alone()) return false;

    std::optional<detail::RankHelper> helper;
    detail::RankOptions rank_options{kind(), workers_here(), options_.worker_init};
    if (options_.processes_per_rank > 0 && launch_.rank != 0) helper.emplace(ranks_.functions(), rank_options);
    if (communicator_ == MPI_COMM_NULL) initialize();
    if (size() == 1) return false;
    link_ = std::make_unique<detail::MpiLink>(communicator_);
    greet();
    if (rank() == 0) return false;
    int provided = MPI_THREAD_SINGLE;
    MPI_Query_thread(&provided);
    rank_options.link_may_change_threads = provided >= MPI_THREAD_SERIALIZED;
    const detail::ExitGuard guard{communicator_, rank()};
    if (helper) {
      helper->relay(*link_, 0);
    } else {
      detail::Rank{*link_, 0, ranks_.functions(), rank_options}.serve();
    }
    return true;
  }

  void initialize() {
    int provided = MPI_THREAD_SINGLE;
    MPI_Init_thread(argc_, argv_, MPI_THREAD_SERIALIZED, &provided);
    finalize_ = true;
    MPI_Comm_dup(MPI_COMM_WORLD, &communicator_);
    int rank = 0;
    int size = 0;
    MPI_Comm_rank(communicator_, &rank);
    MPI_Comm_size(communicator_, &size);
    launch_ = {.launched = true, .rank = rank, .size = size};
  }

  /// Rank 0 gets to know the others.
  void greet() {
    Hello mine{.build = detail::build_digest(), .functions = names_of_functions(), .workers = workers_here()};
    mine.kind = static_cast<std::uint64_t>(kind());
    int length = 0;
    MPI_Get_processor_name(mine.host, &length);
    std::vector<Hello> all(static_cast<std::size_t>(rank() == 0 ? size() : 0));
    MPI_Gather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, 0, communicator_);
    for (std::size_t number = 1; number < all.size(); ++number) {
      peers_.push_back({.number = number, .workers = static_cast<std::size_t>(all[number].workers)});
    }
    for (std::size_t number = 1; number < all.size(); ++number) {
      const Hello& other = all[number];
      const auto refuse = [&](const char* what) {
        throw std::runtime_error(
            fmt::format("mpi::Cluster: rank {} on {} {} than rank 0 on {}: start the same program, with the same "
                        "libraries, everywhere",
                        number, other.host, what, mine.host));
      };
      if (other.build != mine.build) refuse("runs another build of the program");
      if (other.functions != mine.functions) refuse("serves other functions");
      if (other.kind != mine.kind) refuse("has other options (threads or processes)");
    }
  }

  std::uint64_t names_of_functions() const {
    std::uint64_t hash = 0xcbf29ce484222325U;
    for (const RemoteFunction& function : ranks_.functions()) {
      for (const char* c = function.type->name(); *c != '\0'; ++c) {
        hash = (hash ^ static_cast<unsigned char>(*c)) * 0x100000001b3U;
      }
      hash = (hash ^ 0xffU) * 0x100000001b3U;
    }
    return hash;
  }

  const ClusterOptions options_;
  detail::Launch launch_;
  int* argc_ = nullptr;
  char*** argv_ = nullptr;
  MPI_Comm communicator_ = MPI_COMM_NULL;
  bool finalize_ = false;
  bool served_ = false;
  detail::Ranks ranks_;
  std::vector<detail::RankPeer> peers_;
  std::unique_ptr<detail::MpiLink> link_;
};

}  // namespace pyarallel::mpi
