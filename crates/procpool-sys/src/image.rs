//! The program's own image: a way to execute it again, and functions as offsets in it.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::slice;

/// The image that this process runs.
#[derive(Debug)]
pub struct Image {
    /// Close-on-exec.
    file: Option<File>,
    layout: Layout,
    build_id: Vec<u8>,
}

#[derive(Debug, Default)]
struct Layout {
    base: usize,
    code: Vec<Range<usize>>,
    build_id: Vec<u8>,
}

/// Proof that another process runs the same build as this one, so that offsets mean the same in both.
#[derive(Debug, Clone, Copy)]
pub struct SameBuild(());

/// A function of the main image with the trampoline that knows its types. Made from the pair of them, or
/// received from a process of the same build that made it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    run: usize,
    function: usize,
}

/// A trampoline: calls the function at the address in a [`Function`] with arguments that it takes from a `C`.
pub type Run<C> = fn(Function, &mut C);

impl Image {
    /// Opens the image that this process runs, as it is now: a file put in its place later is not used.
    pub fn open() -> io::Result<Image> {
        let file = File::open("/proc/self/exe")?;
        let mut layout = Layout::default();
        let data = (&raw mut layout).cast::<c_void>();
        // SAFETY: the callback gets `data` back and treats it as the `Layout` that it is; no other
        // reference to `layout` exists during the call.
        unsafe { libc::dl_iterate_phdr(Some(read_main_image), data) };
        let mut build_id = mem::take(&mut layout.build_id);
        if build_id.is_empty() {
            // A linker told to leave the build id out. The same file unchanged is the same build.
            let meta = file.metadata()?;
            for number in
                [meta.dev(), meta.ino(), meta.size(), meta.mtime() as u64, meta.mtime_nsec() as u64]
            {
                build_id.extend_from_slice(&number.to_le_bytes());
            }
        }
        Ok(Image { file: Some(file), layout, build_id })
    }

    /// The same without the descriptor. For a worker, whose jobs shall find no descriptors that are not theirs.
    pub fn close(self) -> Image {
        Image { file: None, ..self }
    }

    /// A path that opens the image in a child that is a copy of this process, as one before exec is.
    ///
    /// Both forms are the file that runs, whatever stands at its path by now (proc_pid_exe(5)).
    pub(crate) fn path(&self) -> String {
        match &self.file {
            Some(file) => format!("/proc/self/fd/{}", file.as_raw_fd()),
            None => "/proc/self/exe".into(),
        }
    }

    /// The identity of this build: the linker's build id, or what identifies the file.
    pub fn build_id(&self) -> &[u8] {
        &self.build_id
    }

    /// Checks another process's build id against ours.
    pub fn same_build(&self, build_id: &[u8]) -> Option<SameBuild> {
        (build_id == self.build_id).then_some(SameBuild(()))
    }

    /// The offset of an address, if it is code of the main image: not of a shared library, and not of a
    /// region mapped later.
    pub fn offset(&self, address: usize) -> Option<u64> {
        self.layout
            .code
            .iter()
            .any(|code| code.contains(&address))
            .then(|| (address - self.layout.base) as u64)
    }

    /// The offsets of a trampoline and its function, or `None` if either is outside the main image.
    pub fn offsets(&self, function: Function) -> Option<(u64, u64)> {
        Some((self.offset(function.run)?, self.offset(function.function)?))
    }

    /// The function whose offsets a process of the same build has sent, or `None` if they are not code.
    pub fn receive(&self, _proof: SameBuild, run: u64, function: u64) -> Option<Function> {
        let address = |offset: u64| {
            let address = self.layout.base.checked_add(usize::try_from(offset).ok()?)?;
            self.offset(address).map(|_| address)
        };
        Some(Function { run: address(run)?, function: address(function)? })
    }
}

impl Function {
    /// A function and the trampoline that calls it.
    pub fn new<A, R, C>(run: Run<C>, function: fn(A) -> R) -> Function {
        Function { run: run as usize, function: function as usize }
    }

    /// Calls the trampoline. `C` must be the type that [`Function::new`] was given, which there is only
    /// one of in a program: the worker's.
    pub fn run<C>(self, context: &mut C) {
        // SAFETY: `self.run` was a `Run<C>` of this very build: `Function::new` took it from one, and
        // `Image::receive` asked for proof that the offsets were made by the same image.
        let run = unsafe { mem::transmute::<usize, Run<C>>(self.run) };
        run(self, context);
    }

    /// The function, for the trampoline, which is generic over the same `A` and `R`.
    pub fn function<A, R>(self) -> fn(A) -> R {
        // SAFETY: only the trampoline made with this function's own types gets to see this value, because
        // the two travel together from `Function::new` on.
        unsafe { mem::transmute::<usize, fn(A) -> R>(self.function) }
    }

    /// The function's address, which tells registered tasks apart.
    pub fn address(self) -> usize {
        self.function
    }
}

/// Called for each loaded object; the first is the main program (dl_iterate_phdr(3)).
unsafe extern "C" fn read_main_image(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    data: *mut c_void,
) -> c_int {
    // SAFETY: the loader passes a valid structure that lives for this call.
    let info = unsafe { &*info };
    // SAFETY: `data` is the exclusive pointer to a `Layout` that `Image::open` passed.
    let layout = unsafe { &mut *data.cast::<Layout>() };
    layout.base = info.dlpi_addr as usize;
    // SAFETY: the loader's program headers: `dlpi_phnum` of them, unchanging while the object is loaded.
    let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    for header in headers {
        let start = layout.base.wrapping_add(header.p_vaddr as usize);
        let len = header.p_memsz as usize;
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0 {
            layout.code.push(start..start + len);
        }
        if header.p_type == libc::PT_NOTE {
            // SAFETY: a note segment of the main program is mapped, readable and never written.
            let notes = unsafe { slice::from_raw_parts(start as *const u8, len) };
            if let Some(id) = gnu_build_id(notes) {
                layout.build_id = id.to_vec();
            }
        }
    }
    1
}

/// Finds the GNU build id among ELF notes (elf(5), "Notes").
fn gnu_build_id(mut notes: &[u8]) -> Option<&[u8]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    loop {
        let (head, rest) = notes.split_first_chunk::<12>()?;
        let field =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (name_len, desc_len, kind) = (field(0) as usize, field(4) as usize, field(8));
        let name = rest.get(..name_len)?;
        let desc_at = name_len.next_multiple_of(4);
        let desc = rest.get(desc_at..desc_at.checked_add(desc_len)?)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return Some(desc);
        }
        notes = rest.get(desc_at + desc_len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn double(n: u32) -> u32 {
        n * 2
    }

    fn run(function: Function, context: &mut u32) {
        *context = function.function::<u32, u32>()(*context);
    }

    #[test]
    fn a_function_survives_the_way_through_offsets() {
        let image = Image::open().unwrap();
        let proof = image.same_build(image.build_id()).unwrap();
        let (run, function) = image.offsets(Function::new(run, double)).unwrap();
        let received = image.receive(proof, run, function).unwrap();
        let mut number = 21;
        received.run(&mut number);
        assert_eq!(number, 42);
    }

    /// Goal: a closed image can be executed like an open one.
    #[test]
    fn a_closed_image_has_a_path_too() {
        let image = Image::open().unwrap();
        let [open, closed] = [image.path(), image.close().path()];
        assert_ne!(open, closed);
        let [own, other] = ["/proc/self/exe", &closed].map(|path| std::fs::metadata(path).unwrap());
        assert_eq!((own.dev(), own.ino()), (other.dev(), other.ino()));
    }

    #[test]
    fn addresses_outside_the_main_image_have_no_offset() {
        let image = Image::open().unwrap();
        assert_eq!(image.offset(libc::getpid as *const () as usize), None);
        assert_eq!(image.offset(&raw const image as usize), None);
        let proof = image.same_build(image.build_id()).unwrap();
        assert_eq!(image.receive(proof, u64::MAX, 0), None);
        assert!(image.same_build(b"another build").is_none());
    }

    #[test]
    fn the_build_id_is_found_behind_other_notes() {
        let mut notes = Vec::new();
        for (kind, desc) in [(1u32, [1u8; 6].as_slice()), (3, &[7; 20])] {
            notes.extend_from_slice(&4u32.to_ne_bytes());
            notes.extend_from_slice(&(desc.len() as u32).to_ne_bytes());
            notes.extend_from_slice(&kind.to_ne_bytes());
            notes.extend_from_slice(b"GNU\0");
            notes.extend_from_slice(desc);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        assert_eq!(gnu_build_id(&notes), Some([7; 20].as_slice()));
        for cut in 0..notes.len() {
            gnu_build_id(&notes[..cut]);
        }
    }
}
