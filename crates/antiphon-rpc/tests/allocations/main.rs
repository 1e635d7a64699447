//! What a call takes from the allocator, which is one for a whole program.

#[cfg(test)]
mod blocks;
