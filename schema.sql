-- The database of the server. Other programs read keys, users and auth_logs with exactly these
-- columns, so everything else stands in tables of its own. Times are UTC text,
-- 'YYYY-MM-DD HH:MM:SS.SSS', unless a column says otherwise. This is version 2 (PRAGMA
-- user_version); every statement may be run again, so an older file gets what it lacks.

-- One row per RSA key. Rotation adds a row, retention removes one. A row changes only when its key
-- is sealed with another secret, or ended early. Without NOT_MY_KEY nobody can read, extend or swap a
-- key.
CREATE TABLE IF NOT EXISTS keys(
    kid INTEGER PRIMARY KEY AUTOINCREMENT,  -- number of the row; tokens name the RFC 7638 thumbprint
    key BLOB NOT NULL,                      -- the private JWK as compact JWE (dir, A256CBC-HS512)
    exp INTEGER NOT NULL                    -- expiry, seconds since 1970; sealed into `key` as well
);

-- One row per account. The password is generated, shown once and kept only as its Argon2id hash.
CREATE TABLE IF NOT EXISTS users(
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- never used twice, so a log row keeps its meaning
    username TEXT NOT NULL UNIQUE,          -- NFC; the `sub` of the tokens
    password_hash TEXT NOT NULL,            -- $argon2id$v=19$m=...,t=...,p=...$salt$hash
    email TEXT UNIQUE,                      -- as typed, or NULL
    date_registered TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    last_login TIMESTAMP                    -- of the last token issued; NULL before the first
);

-- Every name that is taken, as names are compared. A name whose account was deleted stays here,
-- retired: tokens named it as their `sub`, which is never given to a second person.
CREATE TABLE IF NOT EXISTS account_names(
    folded TEXT PRIMARY KEY,                -- the username in NFD, case-folded, in NFKC
    user_id INTEGER                         -- users.id; NULL for a retired name
);
CREATE INDEX IF NOT EXISTS account_names_user ON account_names(user_id);

-- What an operator lets the tokens of an account say beyond its name; no row for nothing.
CREATE TABLE IF NOT EXISTS account_claims(
    user_id INTEGER PRIMARY KEY,            -- users.id
    claims TEXT NOT NULL,                   -- a JSON object of at most 2 KiB
    FOREIGN KEY(user_id) REFERENCES users(id) ON DELETE CASCADE
);

-- Names and addresses that differ only in ASCII case would be two accounts that people confuse.
CREATE UNIQUE INDEX IF NOT EXISTS users_username_nocase ON users(username COLLATE NOCASE);
CREATE UNIQUE INDEX IF NOT EXISTS users_email_nocase ON users(email COLLATE NOCASE);

-- The login log: one row per attempt at POST /auth that the limiter let through with well-formed
-- credentials, failed ones too. The name that an unknown user typed is never stored: it may be a
-- password. There is no index on user_id: each login would write one more page (docs/decisions.md).
CREATE TABLE IF NOT EXISTS auth_logs(
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- grows with time: old rows are found by it
    request_ip TEXT NOT NULL,               -- the client's address
    request_timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    user_id INTEGER,                        -- NULL where the user is unknown, or was deleted since
    FOREIGN KEY(user_id) REFERENCES users(id)
);

DROP INDEX IF EXISTS auth_logs_user_id;  -- of the first files

-- How an attempt ended: one row per row of auth_logs, which has no column to spare for it.
CREATE TABLE IF NOT EXISTS auth_outcomes(
    log_id INTEGER PRIMARY KEY,             -- auth_logs.id
    outcome TEXT NOT NULL,                  -- success, bad_password, unknown_user, no_key or invalid_scope
    FOREIGN KEY(log_id) REFERENCES auth_logs(id) ON DELETE CASCADE
);

-- At most one row: the settings for the life of a key that the server was last started with, in
-- seconds. admin.py reads them, so it decides as the server does.
CREATE TABLE IF NOT EXISTS key_policy(
    id INTEGER PRIMARY KEY CHECK (id = 1),
    token_ttl REAL NOT NULL,
    skew REAL NOT NULL,                     -- how far verifiers' clocks may be off
    lifetime REAL NOT NULL,
    lead REAL NOT NULL,                     -- a new key is published this long before it signs
    retention REAL NOT NULL                 -- expired keys are kept this long
);
