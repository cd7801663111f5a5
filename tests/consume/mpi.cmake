# The consumer of <pyarallel/mpi.hpp>, where there is MPI.
if(TARGET pyarallel::mpi)
  add_executable(mpi_consumer ${CMAKE_CURRENT_LIST_DIR}/mpi.cpp)
  target_link_libraries(mpi_consumer PRIVATE pyarallel::mpi)
endif()
