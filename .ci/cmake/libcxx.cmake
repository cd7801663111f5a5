# libc++ before version 20 has std::jthread and std::stop_token only behind a flag. Looked up where the library is
# used, because the compiler there need not be the one that installed it.
set(pyarallel_libcxx_options "")
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  include(CheckCXXSourceCompiles)
  check_cxx_source_compiles([[
    #include <version>
    #if !defined(_LIBCPP_VERSION) || _LIBCPP_VERSION >= 200000
    #error the flag is not needed
    #endif
    int main() {}
  ]] PYARALLEL_LIBCXX_BEFORE_20)
  if(PYARALLEL_LIBCXX_BEFORE_20)
    set(pyarallel_libcxx_options -fexperimental-library)
  endif()
endif()
