//! The kubelet's API over real TLS on loopback, with a fake of the pods' side and of the API server's decisions.

mod server {
    mod access;
    mod bench;
    mod command;
    mod forward;
    mod logs;
    mod pages;
}
