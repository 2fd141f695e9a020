//! Socket pairs, and descriptors that travel over them.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// The two ends of a control channel, both close-on-exec: the pool's, which never blocks, and the worker's.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((ours.into(), theirs.into()))
}

/// A pipe, both ends close-on-exec; reading never blocks.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

/// Has writes to a pipe wait for room, whatever somebody else who has it has made of that: it is the same for all of them.
pub fn let_writes_wait(pipe: impl AsFd) -> io::Result<()> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(())
}

/// The most descriptors that travel with one message: the kernel's SCM_MAX_FD (unix(7)).
pub const FDS_MAX: usize = 253;

/// Room for the descriptors of one message. In words, so that it is aligned as a control message must be.
const CONTROL_WORDS: usize = 16 + FDS_MAX.div_ceil(2);

/// Writes `bytes` with descriptors beside them, at most [`FDS_MAX`]; answers how many bytes were taken. The
/// descriptors go with the first of them.
pub fn send_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let fds: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&fds)];
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(sent)
}

/// What was read.
#[derive(Debug)]
pub struct Received {
    /// How many bytes.
    pub len: usize,
    /// The descriptors that came beside them. Those of one message only: the kernel ends a read there.
    pub fds: Vec<OwnedFd>,
    /// There were more, which this process has no room for (MSG_CTRUNC): they are lost.
    pub fds_lost: bool,
}

/// Reads into `buffer`, with the descriptors that came beside the bytes.
pub fn receive_with_fds(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = [0_u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let message = MaybeUninit::<libc::msghdr>::zeroed();
    // SAFETY: all zeroes is a valid msghdr: no name, no parts, no control.
    let mut message = unsafe { message.assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the header names one buffer and one control buffer, with their lengths, and both live.
    let result =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let Ok(len) = usize::try_from(result) else {
        return Err(io::Error::last_os_error());
    };
    let fds = if message.msg_controllen == 0 { Vec::new() } else { take_fds(&message) };
    Ok(Received { len, fds, fds_lost: message.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// The descriptors of a message that was received. To be called once for each.
fn take_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled in the header and the control buffer that it names.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: `control` is null or points to a whole control header inside the buffer.
    while let Some(header) = unsafe { control.as_ref() } {
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: `control` points to a control header inside the buffer.
            let data = unsafe { libc::CMSG_DATA(control) };
            // SAFETY: computes a length from a length.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = header.cmsg_len.saturating_sub(head) / size_of::<i32>();
            for index in 0..count {
                // SAFETY: the header's length says that so many descriptors follow.
                let at = unsafe { data.cast::<i32>().add(index) };
                // SAFETY: as above; a byte buffer's content need not be aligned.
                let fd = unsafe { at.read_unaligned() };
                // SAFETY: the kernel has just installed this descriptor for us, and nobody else knows it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: both point into the message that the kernel has filled in.
        control = unsafe { libc::CMSG_NXTHDR(message, control) };
    }
    fds
}

/// Writes without blocking, whatever the mode of the description, and without SIGPIPE.
pub fn send_now(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(nix::sys::socket::send(socket.as_fd().as_raw_fd(), bytes, flags)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_bytes() {
        let (ours, theirs) = pair().unwrap();
        let mut file = std::fs::File::from(crate::mapping::create(1).unwrap().1);
        file.write_all(b"12345678").unwrap();
        assert_eq!(send_with_fds(ours.as_fd(), b"take it", &[file.as_fd()]).unwrap(), 7);
        let mut buffer = [0; 16];
        let mut received = receive_with_fds(theirs.as_fd(), &mut buffer).unwrap();
        assert_eq!(&buffer[..received.len], b"take it");
        assert!(!received.fds_lost);
        let mut copy = std::fs::File::from(received.fds.remove(0));
        copy.rewind().unwrap();
        let mut text = String::new();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "12345678");
    }

    /// Goal: descriptors stay with the message that they were sent with, also where a read takes in several.
    #[test]
    fn a_read_ends_with_the_message_that_had_descriptors() {
        let (ours, theirs) = pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let many = vec![file.as_fd(); FDS_MAX];
        assert_eq!(send_now(&ours, b"before ").unwrap(), 7);
        assert_eq!(send_with_fds(ours.as_fd(), b"many ", &many).unwrap(), 5);
        assert_eq!(send_with_fds(ours.as_fd(), b"one", &many[..1]).unwrap(), 3);
        let mut buffer = [0; 64];
        let mut read = Vec::new();
        while read.iter().map(|(text, _)| String::len(text)).sum::<usize>() < 15 {
            let received = receive_with_fds(theirs.as_fd(), &mut buffer).unwrap();
            assert!(!received.fds_lost);
            let text = String::from_utf8_lossy(&buffer[..received.len]).into_owned();
            read.push((text, received.fds.len()));
        }
        assert_eq!(read.last().unwrap(), &("one".to_owned(), 1));
        assert_eq!(read.iter().map(|(_, fds)| *fds).max(), Some(FDS_MAX));
        assert!(send_with_fds(ours.as_fd(), b"x", &vec![file.as_fd(); FDS_MAX + 1]).is_err());
    }

    #[test]
    fn a_full_socket_refuses_instead_of_blocking() {
        let (ours, theirs) = pair().unwrap();
        let chunk = [0; 4096];
        let error = loop {
            if let Err(error) = send_now(&ours, &chunk) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(send_now(&ours, &chunk).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
