// How many CPUs this process may use: affinity mask, and the CPU quotas of its cgroups (v1 and v2).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

#include "pyarallel/detail/computed_once.hpp"

namespace pyarallel::detail {

inline std::size_t cpus_of_affinity() {
#ifdef __linux__
  // A set that is too small for the machine's CPU count is refused with EINVAL.
  for (int cpus = 1024; cpus <= 1024 * 1024; cpus *= 4) {
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set{CPU_ALLOC(static_cast<std::size_t>(cpus)),
                                                               [](cpu_set_t* s) { CPU_FREE(s); }};
    const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(cpus));
    if (set && sched_getaffinity(0, bytes, set.get()) == 0) {
      return std::max<std::size_t>(1, static_cast<std::size_t>(CPU_COUNT_S(bytes, set.get())));
    }
  }
#endif
  return std::max(1U, std::thread::hardware_concurrency());
}

/// Where this thread runs at the moment; -1 if that cannot be told.
inline int this_cpu() noexcept {
#ifdef __linux__
  return sched_getcpu();
#else
  return -1;
#endif
}

/// The same as it was when first asked for: asking the kernel takes as long as a small call.
inline std::size_t cpus_at_start() { return computed_once<cpus_of_affinity>(); }

/// The whole file, or nothing if it cannot be read. (Files of /proc and /sys have no size.)
inline std::optional<std::string> read_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file{std::fopen(path.c_str(), "re"), &std::fclose};
  if (!file) return {};
  std::string text;
  char buffer[4096];
  while (const std::size_t n = std::fread(buffer, 1, sizeof buffer, file.get())) text.append(buffer, n);
  if (std::ferror(file.get()) != 0) return {};
  return text;
}

inline std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const auto end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

/// One mounted cgroup hierarchy that controls CPU time, and this process's group in it.
struct CpuCgroup {
  bool v2;
  std::string mount_point;
  std::string group;  // below the mount point, "" or "/a/b"

  /// CPUs that the group's own quota allows, if it has one.
  std::optional<double> quota_of(const std::string& root, const std::string& of_group) const {
    const std::string folder = root + mount_point + of_group;
    double quota = 0, period = 0;
    if (v2) {
      const auto text = read_file(folder + "/cpu.max");  // "max 100000" or "150000 100000"
      if (!text || std::sscanf(text->c_str(), "%lf %lf", &quota, &period) != 2) return {};
    } else {
      const auto quota_text = read_file(folder + "/cpu.cfs_quota_us");  // -1: none
      const auto period_text = read_file(folder + "/cpu.cfs_period_us");
      if (!quota_text || std::sscanf(quota_text->c_str(), "%lf", &quota) != 1) return {};
      if (!period_text || std::sscanf(period_text->c_str(), "%lf", &period) != 1) return {};
    }
    if (!(quota > 0) || !(period > 0)) return {};
    return quota / period;
  }

  /// The tightest quota from the group up to the mount point: every level binds.
  std::optional<double> tightest_quota(const std::string& root) const {
    std::optional<double> tightest;
    for (std::string level = group;; level.resize(level.rfind('/'))) {
      if (const auto quota = quota_of(root, level)) tightest = std::min(tightest.value_or(*quota), *quota);
      if (level.empty() || level.rfind('/') == std::string::npos) return tightest;
    }
  }
};

/// From /proc/self/cgroup ("0::/a/b", "4:cpu,cpuacct:/a") and /proc/self/mountinfo.
inline std::vector<CpuCgroup> cpu_cgroups(const std::string& root) {
  const auto memberships = read_file(root + "/proc/self/cgroup");
  const auto mounts = read_file(root + "/proc/self/mountinfo");
  if (!memberships || !mounts) return {};
  std::vector<CpuCgroup> found;
  for (const auto line : split(*mounts, '\n')) {
    // "36 35 98:0 /root /mount/point options optional-fields... - type source super-options"
    const auto fields = split(line, ' ');
    const auto dash = std::find(fields.begin(), fields.end(), "-");
    if (fields.size() < 7 || fields.end() - dash < 4) continue;
    const bool v2 = dash[1] == "cgroup2";
    const auto has_cpu = [](std::string_view controllers) {
      const auto names = split(controllers, ',');
      return std::find(names.begin(), names.end(), "cpu") != names.end();
    };
    if (!v2 && !(dash[1] == "cgroup" && has_cpu(dash[3]))) continue;
    for (const auto membership : split(*memberships, '\n')) {
      const auto first = membership.find(':');
      const auto second = membership.find(':', first == std::string_view::npos ? first : first + 1);
      if (second == std::string_view::npos) continue;
      const auto controllers = membership.substr(first + 1, second - first - 1);
      if (v2 ? !controllers.empty() : !has_cpu(controllers)) continue;
      std::string group{membership.substr(second + 1)};
      // In a container the mount may show only the part below `mounted`; a group elsewhere is not in it.
      const std::string_view mounted = fields[3] == "/" ? std::string_view{} : fields[3];
      const bool below = group.starts_with(mounted) && (group.size() == mounted.size() || group[mounted.size()] == '/');
      group.erase(0, below ? mounted.size() : group.size());
      if (group == "/" || group.find("/..") != std::string::npos) group.clear();
      found.push_back({v2, std::string{fields[4]}, std::move(group)});
    }
  }
  return found;
}

/// `root` is "/", or a folder with a proc and a cgroup tree made for a test.
inline std::size_t read_available_parallelism(const std::string& root, std::size_t affinity = cpus_of_affinity()) {
  auto cpus = static_cast<double>(affinity);
  for (const auto& cgroup : cpu_cgroups(root)) {
    // Half a CPU is used by one worker; one and a half by two.
    if (const auto quota = cgroup.tightest_quota(root)) cpus = std::min(cpus, std::ceil(*quota));
  }
  return std::max<std::size_t>(1, static_cast<std::size_t>(cpus));
}

}  // namespace pyarallel::detail
