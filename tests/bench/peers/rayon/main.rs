// rayon as a peer. The protocol, the workloads and how they are timed are those of ../peer.hpp and
// ../workloads.hpp, which say why.

use rayon::prelude::*;
use std::arch::asm;
use std::env;
use std::hint::black_box;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

const VARIANT: &str = "rayon";
const LONG_ENOUGH: Duration = Duration::from_millis(100);
const STEPS_PER_MICROSECOND: i64 = 884;
const SHAPE_ITEMS: i64 = 10_000;

// What the items do -------------------------------------------------------------------------------------

fn trivial(item: i64) -> i64 {
    item * 3 + 1
}

fn work(item: i64, steps: i64) -> i64 {
    let mut value = item as u64;
    for _ in 0..steps {
        value = value
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        // An instruction that is none: else LLVM folds eight steps into one, which g++ does not.
        unsafe { asm!("/* {0} */", inout(reg) value, options(pure, nomem, nostack, preserves_flags)) };
    }
    value as i64
}

fn linear_steps(item: i64) -> i64 {
    17_680 * item / SHAPE_ITEMS
}

fn scattered_steps(item: i64) -> i64 {
    let random = (item as u64)
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    if (random >> 33) % 100 == 7 {
        296_500
    } else {
        5_930
    }
}

fn tail_steps(item: i64) -> i64 {
    if item < SHAPE_ITEMS * 99 / 100 {
        4_464
    } else {
        442_000
    }
}

fn sleeping(item: i64, time: Duration) -> i64 {
    sleep(time);
    trivial(item)
}

fn numbers(count: i64) -> Vec<i64> {
    (0..count).collect()
}

// The peer ----------------------------------------------------------------------------------------------

trait Function: Fn(i64) -> i64 + Copy + Send + Sync {}
impl<F: Fn(i64) -> i64 + Copy + Send + Sync> Function for F {}

fn workers() -> usize {
    env::var("WORKERS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

fn start(workers: usize) {
    rayon::ThreadPoolBuilder::new()
        .num_threads(workers)
        .build_global()
        .expect("a pool");
}

fn map(function: impl Function, input: &[i64]) -> Vec<i64> {
    input.par_iter().map(|&item| function(item)).collect()
}

fn map_into(function: impl Function, input: &[i64], results: &mut [i64]) {
    results
        .par_iter_mut()
        .zip(input)
        .for_each(|(result, &item)| *result = function(item));
}

fn check(results: &[i64], expected: &[i64]) {
    assert!(results == expected, "wrong results");
}

fn expected(function: impl Function, input: &[i64]) -> Vec<i64> {
    input.iter().map(|&item| function(item)).collect()
}

// How long something takes, in nanoseconds --------------------------------------------------------------

fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

fn back_to_back(mut call: impl FnMut()) -> f64 {
    let mut batch = 1;
    let warm = Instant::now();
    while warm.elapsed() < Duration::from_millis(30) {
        let begin = Instant::now();
        for _ in 0..batch {
            call();
        }
        if begin.elapsed() < Duration::from_millis(1) {
            batch *= 2;
        }
    }
    let mut calls = 0;
    let begin = Instant::now();
    while begin.elapsed() < LONG_ENOUGH {
        for _ in 0..batch {
            call();
        }
        calls += batch;
    }
    nanoseconds(begin.elapsed()) / f64::from(calls)
}

fn after_idleness(mut call: impl FnMut()) -> f64 {
    for _ in 0..50 {
        call();
    }
    let mut times: Vec<f64> = (0..61)
        .map(|_| {
            sleep(Duration::from_millis(3));
            let begin = Instant::now();
            call();
            nanoseconds(begin.elapsed())
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Of call(), which says itself how long it took, as it also checks its results.
fn each_call(mut call: impl FnMut() -> Duration) -> f64 {
    call();
    let (mut sum, mut calls) = (Duration::ZERO, 0);
    while sum < LONG_ENOUGH || calls < 3 {
        sum += call();
        calls += 1;
    }
    nanoseconds(sum) / f64::from(calls)
}

// The workloads -----------------------------------------------------------------------------------------

fn small_calls(count: i64, function: impl Function, time: impl Fn(&mut dyn FnMut()) -> f64) -> f64 {
    let input = numbers(count);
    let all = expected(function, &input);
    start(workers());
    check(&map(function, &input), &all);
    let result = time(&mut || {
        let results = black_box(map(function, &input));
        assert!(results.last() == all.last(), "wrong last result");
    });
    check(&map(function, &input), &all);
    result
}

fn large_calls(count: i64, function: impl Function, workers: usize) -> f64 {
    let input = numbers(count);
    let all = expected(function, &input);
    start(workers);
    each_call(|| {
        let begin = Instant::now();
        let results = map(function, &input);
        let time = begin.elapsed();
        check(&results, &all);
        time
    })
}

fn reused_calls(count: i64, function: impl Function) -> f64 {
    let input = numbers(count);
    let all = expected(function, &input);
    let mut results = vec![0; count as usize];
    start(workers());
    each_call(|| {
        let begin = Instant::now();
        map_into(function, &input, &mut results);
        let time = begin.elapsed();
        check(&results, &all);
        results.fill(-1);
        time
    })
}

fn grain(count: i64, steps: i64) -> f64 {
    large_calls(count, |item| work(item, steps), workers()) / count as f64
}

fn shape(steps: fn(i64) -> i64) -> f64 {
    large_calls(SHAPE_ITEMS, |item| work(item, steps(item)), workers()) / 1e6
}

fn blocked(count: i64, item_time: Duration, workers: usize) -> f64 {
    let input = numbers(count);
    let all = expected(trivial, &input); // without the sleep
    start(workers);
    let time = each_call(|| {
        let begin = Instant::now();
        let results = map(|item| sleeping(item, item_time), &input);
        let time = begin.elapsed();
        check(&results, &all);
        time
    });
    time / 1e6
}

fn blocked_first(count: i64, item_time: Duration, workers: usize) -> f64 {
    let input = numbers(count);
    let begin = Instant::now();
    start(workers);
    let results = map(|item| sleeping(item, item_time), &input);
    let time = begin.elapsed();
    check(&results, &expected(trivial, &input));
    nanoseconds(time) / 1e6
}

fn cold_start() -> f64 {
    let input = numbers(200);
    let function = |item| work(item, STEPS_PER_MICROSECOND);
    start(workers());
    check(&map(function, &input), &expected(function, &input));
    0.0
}

fn pulled_discard(count: i64) -> f64 {
    let sum: i64 = numbers(count).into_iter().map(trivial).sum();
    start(workers());
    let time = each_call(|| {
        let begin = Instant::now();
        let pulled: i64 = (0..count).par_bridge().map(trivial).sum();
        let time = begin.elapsed();
        assert!(pulled == sum, "wrong sum");
        time
    });
    time / count as f64
}

fn pulled_collect(count: i64) -> f64 {
    let sum: i64 = numbers(count).into_iter().map(trivial).sum();
    start(workers());
    let time = each_call(|| {
        let begin = Instant::now();
        let results: Vec<i64> = (0..count).par_bridge().map(trivial).collect();
        let time = begin.elapsed();
        assert!(
            results.len() == count as usize && results.iter().sum::<i64>() == sum,
            "wrong results"
        );
        time
    });
    time / count as f64
}

type Workload = (&'static str, fn() -> f64);

const MANY: i64 = 10_000_000;
const MS: Duration = Duration::from_millis(1);
const TEN_MS: Duration = Duration::from_millis(10);

const WORKLOADS: [Workload; 21] = [
    ("call_100", || small_calls(100, trivial, |call| back_to_back(call))),
    ("call_1000", || small_calls(1_000, trivial, |call| back_to_back(call))),
    ("call_10000", || small_calls(10_000, trivial, |call| back_to_back(call))),
    ("idle_100", || small_calls(100, trivial, |call| after_idleness(call))),
    ("idle_200us", || {
        small_calls(
            200,
            |item| work(item, STEPS_PER_MICROSECOND),
            |call| after_idleness(call),
        )
    }),
    ("fresh_10M", || large_calls(MANY, trivial, workers()) / MANY as f64),
    ("reused_10M", || reused_calls(MANY, trivial) / MANY as f64),
    ("grain_62ns", || grain(1_000_000, 88)),
    ("grain_1us", || grain(100_000, 884)),
    ("grain_10us", || grain(10_000, 8_840)),
    ("grain_100us", || grain(1_000, 88_400)),
    ("shape_linear", || shape(linear_steps)),
    ("shape_scattered", || shape(scattered_steps)),
    ("shape_tail", || shape(tail_steps)),
    ("blocked_100_warm", || blocked(1_000, MS, 100)),
    ("blocked_100_cold", || blocked_first(1_000, MS, 100)),
    ("blocked_1000_warm", || blocked(10_000, TEN_MS, 1_000)),
    ("blocked_1000_cold", || blocked_first(10_000, TEN_MS, 1_000)),
    ("cold_start", cold_start),
    ("pulled_discard_10M", || pulled_discard(MANY)),
    ("pulled_collect_10M", || pulled_collect(MANY)),
];

fn main() -> ExitCode {
    let words: Vec<String> = env::args().collect();
    if words.len() == 2 && words[1] == "--list" {
        for (name, _) in WORKLOADS {
            println!("{VARIANT}\t{name}");
        }
        return ExitCode::SUCCESS;
    }
    let known = WORKLOADS
        .iter()
        .find(|(name, _)| words.len() == 3 && words[1] == VARIANT && words[2] == *name);
    match known {
        Some((_, measure)) => {
            println!("{:.6}", measure());
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("usage: {} --list | {} VARIANT WORKLOAD", words[0], words[0]);
            ExitCode::from(2)
        }
    }
}
