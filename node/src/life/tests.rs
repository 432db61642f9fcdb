mod bench;
mod deletion;
mod order;
mod probes;
mod recovery;
mod restarts;
mod world;
