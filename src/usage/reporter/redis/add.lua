-- Adds records to a stream and counts them, each exactly once: a batch of which nobody knows
-- whether it came through is sent again, and what is here already is left out. No other command
-- runs in between. All is looked at before anything is written, since a script that fails half way
-- keeps what it has written.
--
-- KEYS: the stream.
-- ARGV: entries that the stream keeps (0 = all), seconds that ids are remembered; then for each
-- record: its id, the set that remembers it, the hash that counts it (empty = none), its prompt,
-- completion and total tokens, how many items follow, and as many names and values.
local stream, most, seconds = KEYS[1], ARGV[1], ARGV[2]

local function wrong(key, kind)
  local is = redis.call('TYPE', key).ok
  return is ~= 'none' and is ~= kind
end

local records, at = {}, 3
while at <= #ARGV do
  local items = tonumber(ARGV[at + 6])
  records[#records + 1] = at
  if wrong(ARGV[at + 1], 'set') or (ARGV[at + 2] ~= '' and wrong(ARGV[at + 2], 'hash')) then
    return redis.error_reply('WRONGTYPE a key of the usage records is something else')
  end
  at = at + 7 + items
end
if wrong(stream, 'stream') then
  return redis.error_reply('WRONGTYPE a key of the usage records is something else')
end

local added = 0
for _, i in ipairs(records) do
  local id, seen, hash, items = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 6])
  if redis.call('SISMEMBER', seen, id) == 0 then
    if most == '0' then
      redis.call('XADD', stream, '*', unpack(ARGV, i + 7, i + 6 + items))
    else
      redis.call('XADD', stream, 'MAXLEN', '~', most, '*', unpack(ARGV, i + 7, i + 6 + items))
    end
    redis.call('SADD', seen, id)
    redis.call('EXPIRE', seen, seconds)
    if hash ~= '' then
      redis.call('HINCRBY', hash, 'requests', 1)
      redis.call('HINCRBY', hash, 'prompt_tokens', ARGV[i + 3])
      redis.call('HINCRBY', hash, 'completion_tokens', ARGV[i + 4])
      redis.call('HINCRBY', hash, 'total_tokens', ARGV[i + 5])
    end
    added = added + 1
  end
end
return added
