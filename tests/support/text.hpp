// Looking for a part of a text.
#pragma once

#include <string>
#include <string_view>

namespace support {

inline bool says(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

}  // namespace support
