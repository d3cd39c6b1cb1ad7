"""Vision features on disk: what a frozen encoder makes of every medium, read one at a time.

    DIR/plan.json             what they depend on, before anything is made
    DIR/features-000000.bin   bf16[frames, P, E], raw, media after media
    DIR/features-000000.npy   the shard's rows of the index
    DIR/features-000000.json  its account: where its media end, counts, sha256
    DIR/index.npy             the rows of all shards
    DIR/features.json         the sum, last

Raw arrays rather than ArrayRecord: all that is read of a medium is one `pread` into the array that
is used; bf16 features hardly compress, and the check sum that a container would bring stands in
the index. The index is u64[5, rows], sorted by a hash of 128 bits and opened with mmap: its columns
are the hash's two halves, the first frame's number, (reason << 48 | frames << 32 | crc32), and a
digest of the medium's own data. A medium that could not be decoded has a reason and no frames.

Bytes depend on the plan, the media and the encoder's arithmetic; a kill changes none of them.
"""
