//! Power cuts on a recorded disk: the real process on the kernel's own ext4, above a drive of ours.
//!
//! A FUSE file that we serve carries a loop device, that carries ext4, and that a daemon. Every
//! write and every flush that reaches the drive is recorded, together with what the daemon promised
//! by then ([`history`]). Afterwards the power is cut ([`cut`]): at every flush, with any part of
//! the writes that followed it, the drive of that moment is mounted, the shards recover, and what
//! they hold is compared with the promises ([`found`]).
//!
//! What is believed about the drive: a flush keeps all writes that reached it before the flush did.
//! A drive may lose more, the writes that it had not answered when it was told to flush; nobody
//! here relies on those, but that is not shown.

pub mod cut;
mod device;
pub mod drive;
pub mod found;
pub mod history;
pub mod server;
pub mod stand;
pub mod trial;
pub mod workload;
