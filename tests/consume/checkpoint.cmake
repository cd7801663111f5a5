# The consumer of <pyarallel/checkpoint.hpp>, where there is SQLite.
if(TARGET pyarallel::checkpoint)
  add_executable(checkpoint_consumer ${CMAKE_CURRENT_LIST_DIR}/checkpoint.cpp)
  target_link_libraries(checkpoint_consumer PRIVATE pyarallel::checkpoint)
endif()
