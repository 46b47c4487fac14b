//! The record format: frames, chains, segments, checkpoints and their verifier.
