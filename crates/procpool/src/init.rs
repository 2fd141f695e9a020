//! Telling workers from hosts: the first thing a program does.

use std::sync::OnceLock;

use procpool_sys::image::Image;

use crate::Error;
use crate::worker;

static IMAGE: OnceLock<Result<Image, Error>> = OnceLock::new();

const INIT_MISSING: &str = "procpool::init() was not called: make it the first line of main, \
                            or put procpool::testing!(); into the test file";
const INIT_MISSED: &str = "this process was started as a procpool worker, but its main did not call \
                           procpool::init() first: make it the first line of main, \
                           or put procpool::testing!(); into the test file";

/// Makes this program able to have workers. The first line of `main`.
///
/// Workers are the same program, executed again: in a worker process this call never returns. What stands
/// before it in `main` runs in every worker too.
///
/// In a test file, where libtest has `main`, write [`testing!();`](crate::testing) instead.
pub fn init() {
    if procpool_sys::worker::is_worker() {
        worker::serve();
    }
    IMAGE.get_or_init(open_image);
}

fn open_image() -> Result<Image, Error> {
    Image::open().map_err(|error| {
        Error::system("cannot open the program's own image, /proc/self/exe", error)
    })
}

/// Opens the image in a worker, as it starts: its jobs may have pools of their own.
pub(crate) fn image_of_worker() -> Result<&'static Image, Error> {
    IMAGE.get_or_init(|| open_image().map(Image::close)).as_ref().map_err(Error::clone)
}

/// The image, if the program has called `init`.
pub(crate) fn image() -> Result<&'static Image, Error> {
    match IMAGE.get() {
        // A worker that got here has slipped past `init`: one more level of it would be a fork bomb.
        None if procpool_sys::worker::is_worker() => Err(Error::init_missing(INIT_MISSED)),
        None => Err(Error::init_missing(INIT_MISSING)),
        Some(Ok(image)) => Ok(image),
        Some(Err(error)) => Err(error.clone()),
    }
}

/// Called before `main` in a test program.
#[doc(hidden)]
pub extern "C" fn init_before_main() {
    init();
}

/// Makes pools work in a file of tests: one line, anywhere in the file.
///
/// libtest has `main` in a test program, so `init()` cannot be its first line. This runs it before `main`
/// (as an entry of `.init_array`), under `cargo test` and nextest alike.
///
/// ```
/// procpool::testing!();
///
/// fn double(n: u32) -> u32 {
///     n * 2
/// }
///
/// # fn main() {
/// // in a #[test]
/// let pool = procpool::ProcessPool::new().unwrap();
/// assert_eq!(pool.submit(double, 21).result().unwrap(), 42);
/// # }
/// ```
#[macro_export]
macro_rules! testing {
    () => {
        const _: () = {
            #[used]
            #[unsafe(link_section = ".init_array")]
            static INIT: extern "C" fn() = $crate::__private::init_before_main;
        };
    };
}
