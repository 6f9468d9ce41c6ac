//! The few things done to files and folders that std does not do in one call.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Which file it is, whatever its name. Meaningful as long as the file is kept open: then the number is not used again.
pub(crate) fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Makes names in a folder durable: a file that was made, renamed or removed there.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    sync(&File::open(folder)?)
}

/// Makes all of a file durable.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    tracing::trace!("fsync");
    file.sync_all()
}

/// Makes what stands in a file durable, and how long it is.
pub(crate) fn sync_content(file: &File) -> io::Result<()> {
    tracing::trace!("fsync");
    file.sync_data()
}

/// Makes a folder and those above it up to `root`, whose parent must exist.
pub(crate) fn create_folders(root: &Path, folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent().filter(|_| folder != root) {
        create_folders(root, parent)?;
    }
    match fs::create_dir(folder) {
        Ok(()) => folder.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_folder),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a file that may be gone already.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Sets disk space behind the end of a file aside, without making the file longer. Says whether the file system can.
#[cfg(target_os = "linux")]
pub(crate) fn reserve(file: &File, from: u64, bytes: u64) -> io::Result<bool> {
    use rustix::fs::FallocateFlags;
    use rustix::io::Errno;
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, from, bytes) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Not asked for elsewhere: a write finds out.
#[cfg(not(target_os = "linux"))]
pub(crate) fn reserve(_file: &File, _from: u64, _bytes: u64) -> io::Result<bool> {
    Ok(false)
}

/// The name of the network file system that a folder is on, if it is on one.
#[cfg(target_os = "linux")]
pub(crate) fn network_file_system(folder: &Path) -> io::Result<Option<&'static str>> {
    // The sign is the low half on every architecture, whatever the field's type.
    let sign = rustix::fs::statfs(folder)?.f_type as u32;
    Ok(network_name(sign))
}

#[cfg(target_os = "linux")]
fn network_name(sign: u32) -> Option<&'static str> {
    Some(match sign {
        0x0000_6969 => "NFS",
        0x0000_517B => "SMB",
        0xFF53_4D42 => "CIFS",
        0xFE53_4D42 => "SMB2",
        0x0102_1997 => "9p",
        0x6573_5546 => "FUSE",
        0x00C3_6400 => "Ceph",
        0x5346_414F | 0x6B41_4653 => "AFS",
        0x0116_1970 => "GFS2",
        0x7461_636F => "OCFS2",
        0x0BD0_0BD0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x7375_7245 => "Coda",
        0x0000_564C => "NCP",
        0x786F_4256 => "VirtualBox's shared folders",
        0xBACB_ACBC => "VMware's shared folders",
        0x1983_0326 => "BeeGFS",
        0xAAD7_AAEA => "PanFS",
        _ => return None,
    })
}

/// Elsewhere the system says itself whether it is local.
#[cfg(not(target_os = "linux"))]
pub(crate) fn network_file_system(folder: &Path) -> io::Result<Option<&'static str>> {
    const MNT_LOCAL: u32 = 0x1000;
    let flags = rustix::fs::statfs(folder)?.f_flags;
    Ok((flags & MNT_LOCAL == 0).then_some("a network file system"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_sign_and_disks_are_none() {
        for (sign, name) in [(0x6969, "NFS"), (0xFF53_4D42, "CIFS"), (0x0102_1997, "9p"), (0x6573_5546, "FUSE")] {
            assert_eq!(network_name(sign), Some(name));
        }
        // ext4, xfs, btrfs, tmpfs, overlay.
        for sign in [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x794C_7630] {
            assert_eq!(network_name(sign), None);
        }
        // A kernel's own file system, and no network's.
        assert_eq!(network_file_system(Path::new("/proc")).unwrap(), None);
    }

    #[test]
    fn folders_are_made_below_the_root_and_the_roots_parent_is_not() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        create_folders(&root, &root.join("a/b")).unwrap();
        assert!(root.join("a/b").is_dir());
        create_folders(&root, &root.join("a/b")).unwrap();
        let far = place.path().join("none/root");
        assert_eq!(create_folders(&far, &far.join("a")).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(place.path().join("file"), "").unwrap();
        assert!(create_folders(&place.path().join("file"), &place.path().join("file")).is_err());
    }
}
