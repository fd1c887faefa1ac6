-- Namespace of format 1 (docs/FORMAT.md 7). One SQLite database inside a content tree.
-- Names, link targets and xattrs are bytes; times are signed nanoseconds since 1970 (UTC).

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,  -- schema, next_ino, next_cookie, files, bytes, capabilities
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE inode (
    ino        INTEGER PRIMARY KEY,  -- 1 is the root directory; never used twice
    mode       INTEGER NOT NULL,     -- type and permission bits as st_mode
    uid        INTEGER NOT NULL,
    gid        INTEGER NOT NULL,
    rdev       INTEGER NOT NULL,
    nlink      INTEGER NOT NULL,     -- 0: unlinked but still open; purged by the next opening for writing
    atime_ns   INTEGER NOT NULL,
    mtime_ns   INTEGER NOT NULL,
    ctime_ns   INTEGER NOT NULL,
    btime_ns   INTEGER NOT NULL,
    protection INTEGER NOT NULL,     -- 0 encrypted, 1 authenticated; a directory hands it to what is made in it
    size       INTEGER NOT NULL,     -- content root: size, depth, pointer (NULL: hole)
    depth      INTEGER NOT NULL,
    pointer    BLOB,
    chunks     INTEGER NOT NULL,     -- chunks that are not holes
    parent     INTEGER,              -- of a directory
    target     BLOB                  -- of a symbolic link
) STRICT;

CREATE INDEX inode_unlinked ON inode (ino) WHERE nlink = 0;

CREATE TABLE dirent (
    parent INTEGER NOT NULL,
    cookie INTEGER NOT NULL,  -- position for readdir; grows with time, never used twice
    name   BLOB NOT NULL,
    ino    INTEGER NOT NULL,
    PRIMARY KEY (parent, cookie)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX dirent_name ON dirent (parent, name);

CREATE TABLE xattr (
    ino   INTEGER NOT NULL,
    name  BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (ino, name)
) STRICT, WITHOUT ROWID;
