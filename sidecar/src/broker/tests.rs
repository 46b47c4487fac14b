//! The broker client against a scripted broker.
