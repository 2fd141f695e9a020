//! Starting a program inside a cgroup: `clone3` with CLONE_INTO_CGROUP (clone(2), Linux 5.7).
//!
//! A process that is moved into its cgroup after its start can have left children outside by then, and the
//! move can wait for milliseconds (for an RCU grace period) where the birth costs nothing. The C library
//! has no call for it before glibc 2.39, so the one call is made here, in the shape of its `posix_spawn`:
//!
//! * CLONE_VM and CLONE_VFORK: the child borrows this process's memory, and the calling thread sleeps until
//!   the child has executed its program or ended. No page tables are copied, however large this process is.
//! * On a stack of its own, so that it cannot damage the frames that the caller returns to.
//! * With all signals blocked until it is about to execute, and all handlers reset (CLONE_CLEAR_SIGHAND,
//!   Linux 5.5): no handler of this process ever runs in it.
//! * What it runs are system calls on memory that was made ready before: setpgid, dup2, rt_sigprocmask,
//!   execve, _exit. No allocation, no lock, no panic. An error is left in the borrowed memory.

use std::ffi::{CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::ptr;

use nix::fcntl::{FcntlArg, fcntl};

use super::{BORN_IN_CGROUP, Environment, WORKER_VARIABLE};

/// Bytes of the child's stack. It makes a handful of calls that go two or three frames deep; the rest is
/// room for builds without optimisation.
const STACK_BYTES: usize = 64 * 1024;

/// The kernel's numbers (linux/sched.h): in the libc crate they are cut to 32 bits, which makes them zero.
const CLONE_VM: u64 = 0x0000_0100;
const CLONE_PIDFD: u64 = 0x0000_1000;
const CLONE_VFORK: u64 = 0x0000_4000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A signal set as the kernel sees it; unlike the C library's calls, the system call also blocks the
/// library's own signals.
type KernelSet = u64;

/// What is executed, and with which standard streams.
pub(super) struct Plan {
    pub(super) path: CString,
    pub(super) arguments: Vec<CString>,
    environment: Vec<CString>,
    /// For descriptors 0, 1 and 2, each itself above 2; `None` leaves the caller's.
    pub(super) streams: [Option<OwnedFd>; 3],
}

/// Why there is no child.
#[derive(Debug)]
pub(super) enum Failure {
    /// No process was made: the kernel is too old, or something forbids it.
    Clone(io::Error),
    /// It was made, and could not become the program.
    Start(io::Error),
}

impl Plan {
    /// Fails on a zero byte in any of them, and if a descriptor cannot be duplicated.
    pub(super) fn new(
        path: OsString,
        arguments: Vec<OsString>,
        environment: Environment,
        streams: [Option<OwnedFd>; 3],
    ) -> io::Result<Plan> {
        let text = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::from);
        let others = environment.into_iter().filter(|(key, _)| key != WORKER_VARIABLE);
        let environment = others.map(|(key, value)| {
            let mut variable = key;
            variable.push("=");
            variable.push(value);
            text(variable)
        });
        let mut plan = Plan {
            path: text(path)?,
            arguments: arguments.into_iter().map(text).collect::<io::Result<_>>()?,
            environment: environment.collect::<io::Result<_>>()?,
            streams,
        };
        for stream in plan.streams.iter_mut().flatten() {
            if stream.as_raw_fd() <= 2 {
                // A host without standard streams: one descriptor could overwrite another before its turn,
                // and one that is in its place already would be closed by the exec.
                let above = fcntl(&*stream, FcntlArg::F_DUPFD_CLOEXEC(3))?;
                // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
                *stream = unsafe { OwnedFd::from_raw_fd(above) };
            }
        }
        Ok(plan)
    }

    /// The environment of a worker with this birthplace.
    pub(super) fn environment_of(&self, birthplace: &str) -> Vec<CString> {
        let worker = CString::new(format!("{WORKER_VARIABLE}={birthplace}"));
        let worker = worker.expect("neither of these texts has a zero byte");
        self.environment.iter().cloned().chain([worker]).collect()
    }

    /// Starts it as a child in `cgroup`, leading a process group of its own: its id and its pidfd.
    pub(super) fn start_in(&self, cgroup: BorrowedFd<'_>) -> Result<(u32, OwnedFd), Failure> {
        let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
            texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
        };
        let arguments = pointers(&self.arguments);
        let environment = self.environment_of(BORN_IN_CGROUP);
        let environment = pointers(&environment);
        let mut stack = vec![MaybeUninit::<u128>::uninit(); STACK_BYTES / size_of::<u128>()];
        let mut pidfd: libc::c_int = -1;
        let mut orders = Orders {
            path: self.path.as_ptr(),
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            streams: self.streams.each_ref().map(|fd| fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)),
            mask: 0,
            errno: 0,
        };
        let request = CloneRequest {
            flags: CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP,
            pidfd: &raw mut pidfd as u64,
            exit_signal: libc::SIGCHLD as u64,
            stack: stack.as_mut_ptr() as u64,
            stack_size: STACK_BYTES as u64,
            cgroup: cgroup.as_raw_fd() as u64,
            ..CloneRequest::default()
        };
        orders.mask = set_mask(KernelSet::MAX);
        // SAFETY: the stack is STACK_BYTES long, aligned to 16 and nobody else's; `orders` and all it points
        // to, the stack and the request stay until the child lets go of our memory, since the call returns
        // only then (CLONE_VFORK). All signals are blocked, so no handler runs on either side meanwhile.
        let result = unsafe { clone_with_stack(&request, &raw mut orders) };
        // The child is gone from our memory. What it wrote there came through the pointer that the call was
        // given, so the compiler reads it anew.
        let Orders { mask, errno, .. } = orders;
        set_mask(mask);
        drop(stack);
        if result < 0 {
            return Err(Failure::Clone(io::Error::from_raw_os_error(-result as i32)));
        }
        // SAFETY: the call has succeeded, so the kernel has put a new descriptor there for us.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        if errno != 0 {
            super::wait_by(&pidfd, libc::WEXITED);
            return Err(Failure::Start(io::Error::from_raw_os_error(errno)));
        }
        Ok((result as u32, pidfd))
    }
}

/// Asks for a child in a file that is no cgroup, which a kernel that knows the request refuses with EBADF.
pub(super) fn probe() -> io::Result<()> {
    let no_cgroup = std::fs::File::open("/dev/null")?;
    let request = CloneRequest {
        flags: CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: no_cgroup.as_raw_fd() as u64,
        ..CloneRequest::default()
    };
    let size = size_of::<CloneRequest>();
    // SAFETY: the request is valid, and the file no cgroup, so no child is made.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const request, size) };
    match io::Error::last_os_error() {
        error if result < 0 && error.raw_os_error() == Some(libc::EBADF) => Ok(()),
        error => Err(super::refused("clone3", error)),
    }
}

/// What the child reads and writes in its parent's memory.
struct Orders {
    path: *const libc::c_char,
    arguments: *const *const libc::c_char,
    environment: *const *const libc::c_char,
    streams: [libc::c_int; 3],
    /// The caller's signal mask, which the program gets.
    mask: KernelSet,
    /// Why it could not be executed.
    errno: libc::c_int,
}

/// `struct clone_args` (clone(2)), up to CLONE_ARGS_SIZE_VER2.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneRequest {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// All that happens in the child. Everything here is async-signal-safe (signal-safety(7)); the C library's
/// wrappers write `errno`, which is the calling thread's, and that thread sleeps.
extern "C" fn become_program(orders: *mut Orders) -> ! {
    // SAFETY: the parent keeps it for us, and sleeps.
    let orders = unsafe { &mut *orders };
    // SAFETY: two integers. A child that has just been made can always lead a group.
    let mut result = unsafe { libc::setpgid(0, 0) };
    for (place, fd) in (0..).zip(orders.streams) {
        if result >= 0 && fd >= 0 {
            // SAFETY: two integers; our descriptor table is a copy of the parent's.
            result = unsafe { libc::dup2(fd, place) };
        }
    }
    if result >= 0 {
        let (mask, none) = (&raw const orders.mask, ptr::null_mut::<KernelSet>());
        // SAFETY: `mask` is a valid set. What was blocked and is now delivered finds no handler.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                mask,
                none,
                size_of::<KernelSet>(),
            )
        };
        // SAFETY: a text that ends with a zero, and two lists of such that end with a null pointer.
        unsafe { libc::execve(orders.path, orders.arguments, orders.environment) };
    }
    // SAFETY: asks where this thread's errno is; it always has one.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it is the parent thread's, valid and aligned, and that thread sleeps.
    let errno = unsafe { place.read() };
    // SAFETY: `orders` is valid, see above; volatile because nobody reads it in this function.
    unsafe { ptr::write_volatile(&raw mut orders.errno, errno) };
    // SAFETY: ends this process; runs nothing of the parent's.
    unsafe { libc::_exit(127) }
}

/// `clone3`, with [`become_program`] on the new stack in the child. The child's id, or a negated errno.
///
/// # Safety
/// The request names a stack that is aligned to 16 and used by nobody; it, `orders` and everything they point
/// to live until the call returns; CLONE_VM and CLONE_VFORK are set; all signals are blocked.
unsafe fn clone_with_stack(request: &CloneRequest, orders: *mut Orders) -> isize {
    #[cfg(target_arch = "x86_64")]
    {
        let result: isize;
        // SAFETY: the system call changes rax, rcx and r11 only. In the parent execution goes on at the
        // label with its own stack as it was. In the child rsp is the top of the new stack, aligned to 16 as
        // a call wants it, and the call does not return.
        unsafe {
            std::arch::asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                // The outermost frame, for whoever unwinds.
                "xor ebp, ebp",
                "mov rdi, r8",
                "call rdx",
                "ud2",
                "2:",
                inlateout("rax") libc::SYS_clone3 as isize => result,
                in("rdi") ptr::from_ref(request),
                in("rsi") size_of::<CloneRequest>(),
                in("rdx") become_program as extern "C" fn(*mut Orders) -> !,
                in("r8") orders,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        result
    }
    #[cfg(target_arch = "aarch64")]
    {
        let result: isize;
        // SAFETY: the system call changes x0 only. In the parent execution goes on at the label with its own
        // stack as it was. In the child sp is the top of the new stack, and the call does not return.
        unsafe {
            std::arch::asm!(
                "svc #0",
                "cbnz x0, 2f",
                // The outermost frame, for whoever unwinds.
                "mov x29, xzr",
                "mov x30, xzr",
                "mov x0, x9",
                "blr x10",
                "brk #1",
                "2:",
                in("x8") libc::SYS_clone3,
                inlateout("x0") ptr::from_ref(request) => result,
                in("x1") size_of::<CloneRequest>(),
                in("x9") orders,
                in("x10") become_program as extern "C" fn(*mut Orders) -> !,
            );
        }
        result
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        // The caller then starts the program outside and moves it.
        let _ = (request, orders, become_program as extern "C" fn(*mut Orders) -> !);
        -(libc::ENOSYS as isize)
    }
}

/// Sets the calling thread's signal mask, the C library's own signals included, and gives the one before.
fn set_mask(mask: KernelSet) -> KernelSet {
    let mut before: KernelSet = 0;
    let (new, old) = (&raw const mask, &raw mut before);
    // SAFETY: both are valid sets of the size that is said. It cannot fail with these arguments.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, new, old, size_of::<KernelSet>())
    };
    before
}
