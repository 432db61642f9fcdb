mod bench;
mod deletion;
mod order;
mod probes;
mod recovery;
mod restarts;
mod update;
mod world;
