// C11: how many CPUs a process may use, from its affinity and from the quotas of its cgroups.
#include <array>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <pyarallel.hpp>
#include <stdexcept>
#include <string>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

#include "support/catch.hpp"
#include "support/child.hpp"

using namespace pyarallel;
using namespace support;

namespace {

namespace fs = std::filesystem;

/// A folder that stands for "/", with the files that the kernel would show.
class FakeRoot {
 public:
  FakeRoot() {
    std::string name = (fs::temp_directory_path() / "parallelism-test-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~FakeRoot() { fs::remove_all(path_); }
  FakeRoot(const FakeRoot&) = delete;
  FakeRoot& operator=(const FakeRoot&) = delete;

  void write(const std::string& path, const std::string& text) const {
    const fs::path file = path_ / path.substr(1);
    fs::create_directories(file.parent_path());
    std::ofstream{file} << text;
  }
  void write_cgroup(const std::string& text) const { write("/proc/self/cgroup", text); }
  void write_mounts(const std::string& text) const { write("/proc/self/mountinfo", text); }

  /// With 64 CPUs in the affinity mask, unless said.
  std::size_t cpus(std::size_t affinity = 64) const {
    return detail::read_available_parallelism(path_.string(), affinity);
  }

 private:
  fs::path path_;
};

const std::string other_mounts =
    "21 26 0:19 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n"
    "26 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n";
const std::string v2_mount = other_mounts + "29 21 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
const std::string v1_mount = other_mounts +
                             "30 29 0:27 / /sys/fs/cgroup/memory rw shared:5 - cgroup cgroup rw,memory\n"
                             "31 29 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:6 - cgroup cgroup rw,cpu,cpuacct\n";

FakeRoot& v2_root(FakeRoot& root, const std::string& group) {
  root.write_cgroup("0::" + group + "\n");
  root.write_mounts(v2_mount);
  return root;
}

FakeRoot& v1_root(FakeRoot& root, const std::string& group) {
  root.write_cgroup("12:memory:" + group + "/m\n4:cpu,cpuacct:" + group + "\n1:name=systemd:/init\n0::/\n");
  root.write_mounts(v1_mount);
  return root;
}

}  // namespace

TEST_CASE("C11 without cgroups the affinity counts") {
  FakeRoot root;
  CHECK(root.cpus(1) == 1);
  CHECK(root.cpus(64) == 64);
  root.write_mounts(v2_mount);
  CHECK(root.cpus() == 64);
  FakeRoot only_membership;
  only_membership.write_cgroup("0::/a\n");
  CHECK(only_membership.cpus() == 64);
}

TEST_CASE("C11 a cgroup v2 quota is rounded up to whole CPUs") {
  FakeRoot root;
  v2_root(root, "/a");
  const auto cpus_with = [&](const std::string& quota) {
    root.write("/sys/fs/cgroup/a/cpu.max", quota);
    return root.cpus();
  };
  CHECK(cpus_with("200000 100000\n") == 2);
  CHECK(cpus_with("150000 100000\n") == 2);
  CHECK(cpus_with("100001 100000\n") == 2);
  CHECK(cpus_with("100000 100000\n") == 1);
  CHECK(cpus_with("1000 100000\n") == 1);
  CHECK(cpus_with("9600000 100000\n") == 64);
  CHECK(cpus_with("50000 10000\n") == 5);
}

TEST_CASE("C11 a quota never gives more CPUs than the affinity") {
  FakeRoot root;
  v2_root(root, "/a").write("/sys/fs/cgroup/a/cpu.max", "800000 100000\n");
  CHECK(root.cpus(4) == 4);
  CHECK(root.cpus(8) == 8);
  CHECK(root.cpus(16) == 8);
}

TEST_CASE("C11 no quota or a file that says something else binds nothing") {
  FakeRoot root;
  v2_root(root, "/a");
  CHECK(root.cpus() == 64);
  for (const std::string text : {"max 100000\n", "", "max\n", "garbage", "100000\n", "-1 100000\n", "100000 0\n",
                                 "0 100000\n", "nan 100000\n", "100000 nan\n", "inf 100000\n", "1e400 1\n", "\n\n\n"}) {
    INFO("cpu.max: " << text);
    root.write("/sys/fs/cgroup/a/cpu.max", text);
    CHECK(root.cpus() == 64);
  }
}

TEST_CASE("C11 the tightest quota from the group up to the mount binds") {
  FakeRoot root;
  v2_root(root, "/a/b/c");
  const auto write = [&](const std::string& group, const std::string& quota) {
    root.write("/sys/fs/cgroup" + group + "/cpu.max", quota);
  };
  write("/a/b/c", "800000 100000\n");
  CHECK(root.cpus() == 8);
  write("/a/b", "max 100000\n");
  CHECK(root.cpus() == 8);
  write("/a", "300000 100000\n");
  CHECK(root.cpus() == 3);
  write("", "600000 100000\n");
  CHECK(root.cpus() == 3);
  write("", "200000 100000\n");
  CHECK(root.cpus() == 2);
  write("/other", "100000 100000\n");
  CHECK(root.cpus() == 2);
}

TEST_CASE("C11 a cgroup v1 quota binds") {
  FakeRoot root;
  v1_root(root, "/a/b");
  const auto write = [&](const std::string& group, const std::string& quota, const std::string& period) {
    const std::string folder = "/sys/fs/cgroup/cpu,cpuacct" + group;
    root.write(folder + "/cpu.cfs_quota_us", quota);
    root.write(folder + "/cpu.cfs_period_us", period);
  };
  CHECK(root.cpus() == 64);
  write("/a/b", "-1\n", "100000\n");
  CHECK(root.cpus() == 64);
  write("/a/b", "350000\n", "100000\n");
  CHECK(root.cpus() == 4);
  write("", "-1\n", "100000\n");
  CHECK(root.cpus() == 4);
  write("/a", "50000\n", "25000\n");
  CHECK(root.cpus() == 2);
  write("/a", "50000\n", "");
  CHECK(root.cpus() == 4);
  write("/a", "", "25000\n");
  CHECK(root.cpus() == 4);
  root.write("/sys/fs/cgroup/memory/a/b/m/cpu.cfs_quota_us", "100000\n");
  root.write("/sys/fs/cgroup/memory/a/b/m/cpu.cfs_period_us", "100000\n");
  CHECK(root.cpus() == 4);
}

TEST_CASE("C11 in a mixed hierarchy the tighter of v1 and v2 binds") {
  FakeRoot root;
  root.write_cgroup("4:cpu,cpuacct:/a\n0::/b\n");
  root.write_mounts(v1_mount + "29 21 0:26 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n");
  root.write("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "500000\n");
  root.write("/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n");
  CHECK(root.cpus() == 5);
  root.write("/sys/fs/cgroup/unified/b/cpu.max", "300000 100000\n");
  CHECK(root.cpus() == 3);
}

TEST_CASE("C11 in a container the mount may show only the part below its root") {
  FakeRoot root;
  const std::string container = "/docker/0123456789ab";
  root.write_mounts(other_mounts + "29 21 0:26 " + container + " /sys/fs/cgroup ro - cgroup2 cgroup ro\n");
  root.write("/sys/fs/cgroup/cpu.max", "300000 100000\n");
  root.write("/sys/fs/cgroup/job/cpu.max", "200000 100000\n");
  SECTION("the process is in the group that is mounted") {
    root.write_cgroup("0::" + container + "\n");
    CHECK(root.cpus() == 3);
  }
  SECTION("the process is in a group below it") {
    root.write_cgroup("0::" + container + "/job\n");
    CHECK(root.cpus() == 2);
  }
  SECTION("a group whose name only begins alike is another") {
    root.write_cgroup("0::" + container + "cd/job\n");
    CHECK(root.cpus() == 3);
  }
  SECTION("with a namespace of its own the group is the root") {
    root.write_mounts(other_mounts + "29 21 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup ro\n");
    root.write_cgroup("0::/\n");
    CHECK(root.cpus() == 3);
  }
  SECTION("the group lies outside of the namespace") {
    root.write_mounts(other_mounts + "29 21 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup ro\n");
    root.write_cgroup("0::/../../elsewhere\n");
    CHECK(root.cpus() == 3);
  }
  SECTION("only a bind mount of the parent is visible and the group is not in it") {
    root.write_mounts(other_mounts + "29 21 0:26 /../.. /sys/fs/cgroup ro - cgroup2 cgroup ro\n");
    root.write_cgroup("0::/\n");
    CHECK(root.cpus() == 3);
  }
}

TEST_CASE("C11 broken files of the kernel are ignored") {
  const std::string good_membership = "0::/a\n";
  const auto cpus_with = [](const std::string& membership, const std::string& mounts) {
    FakeRoot root;
    root.write_cgroup(membership);
    root.write_mounts(mounts);
    root.write("/sys/fs/cgroup/a/cpu.max", "200000 100000\n");
    return root.cpus();
  };
  CHECK(cpus_with(good_membership, v2_mount) == 2);
  CHECK(cpus_with(good_membership, "") == 64);
  CHECK(cpus_with(good_membership, "29 21 0:26 / /sys/fs/cgroup rw - cgroup2\n") == 64);
  CHECK(cpus_with(good_membership, "- cgroup2 a b\n\n-\n") == 64);
  CHECK(cpus_with(good_membership, std::string(100'000, ' ')) == 64);
  CHECK(cpus_with("", v2_mount) == 64);
  CHECK(cpus_with("0:\n:\n::\n0", v2_mount) == 64);
  CHECK(cpus_with("\n\n0::/a", v2_mount) == 2);  // without the last line's end
  CHECK(cpus_with("0::a\n", v2_mount) >= 1);
}

TEST_CASE("C11 a quota of this machine never exceeds its CPUs") {
  const std::size_t n = available_parallelism();
  CHECK(n >= 1);
  CHECK(n <= detail::cpus_of_affinity());
  if (std::thread::hardware_concurrency() > 0) CHECK(n <= std::thread::hardware_concurrency());
}

#ifdef __linux__
TEST_CASE("C11 a process that is tied to one CPU has one") {
  const auto child = in_child([](Parent) {
    cpu_set_t mine;
    if (sched_getaffinity(0, sizeof mine, &mine) != 0) _exit(2);
    int first = 0;
    while (!CPU_ISSET(first, &mine)) ++first;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    if (sched_setaffinity(0, sizeof one, &one) != 0) _exit(3);
    _exit(available_parallelism() == 1 && detail::cpus_of_affinity() == 1 ? 7 : 8);
  });
  CHECK(child.end() == "exited with 7");
}
#endif
