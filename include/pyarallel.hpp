// pyarallel: apply one function to many inputs, in parallel, against a world that pushes back.
#pragma once

#include "pyarallel/codec.hpp"               // values that cross a process boundary
#include "pyarallel/error.hpp"               // what items and runs fail with
#include "pyarallel/executor.hpp"            // where items run
#include "pyarallel/format.hpp"              // how fmt prints all this
#include "pyarallel/http.hpp"                // errors with a status, Retry-After
#include "pyarallel/map.hpp"                 // parallel_map, parallel_starmap
#include "pyarallel/options.hpp"             // what a caller says
#include "pyarallel/parallel_function.hpp"   // parallel(fn): the decorator
#include "pyarallel/rate_limit.hpp"          // how fast
#include "pyarallel/register_exception.hpp"  // exceptions that cross a process boundary
#include "pyarallel/result.hpp"              // what a caller gets
#include "pyarallel/retry.hpp"               // when and how to try again
#include "pyarallel/signal_stop.hpp"         // Ctrl-C as a stop token
#include "pyarallel/status.hpp"              // RunStatus, ItemKey, Task
#include "pyarallel/stream.hpp"              // parallel_iter
#include "pyarallel/summary.hpp"             // a result as text, for people
