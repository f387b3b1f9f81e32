-- What a gateway's requests have used of the quotas of some keys, and what all have. A gateway tells
-- all that was used with it in the running period, not what was added since: it may tell it twice,
-- late, or after it was killed, and it counts once.
--
-- KEYS: for each key its own name, and a name beside it. ARGV: the gateway; for each key the number
-- of the running period, the tokens used here, those that the key says were used before anybody
-- counted, 1 if it says that of a period that is over, and for how many seconds what stands beside
-- the key is kept (0: for ever).
-- Gives for each key the tokens that all have used in this period, or -1: there is no such key; -2:
-- a later period has begun; -3: what stands in its place is no number.
local me = ARGV[1]
local answer = {}

-- Kinds of periods are apart by so much; no two have a number in common.
local function kind_of(period)
  return math.floor(period / 16384)
end

local function count(at)
  local name, beside = KEYS[2 * at - 1], KEYS[2 * at]
  local period, own = tonumber(ARGV[5 * at - 3]), tonumber(ARGV[5 * at - 2])
  local first, is_over = tonumber(ARGV[5 * at - 1]), ARGV[5 * at] == '1'
  local life = tonumber(ARGV[5 * at + 1])
  local kind = redis.call('TYPE', name).ok
  if kind == 'none' then
    -- Nothing brings back a key that was taken away.
    return -1
  end
  local is_hash = kind == 'hash'
  local place, field = beside, 'used'
  if is_hash then
    place, field = name, 'used_quota'
  end
  local known = tonumber(redis.call('HGET', beside, 'period') or '')
  if known and kind_of(known) == kind_of(period) and known > period then
    return -2
  end
  if known ~= period then
    redis.call('DEL', beside)
    redis.call('HSET', beside, 'period', period)
    if known or is_over then
      redis.call('HSET', place, field, 0)
    elseif not is_hash then
      redis.call('HSET', place, field, first)
    end
    if is_hash and kind_of(period) > 0 then
      local set = (known or is_over) and 'HSET' or 'HSETNX'
      redis.call(set, name, 'last_reset_at', redis.call('TIME')[1])
    end
  end
  local more = own - (tonumber(redis.call('HGET', beside, me) or '') or 0)
  -- Less than was told is old: it was read earlier, and came later.
  if more > 0 then
    local counted = redis.pcall('HINCRBY', place, field, string.format('%.0f', more))
    if type(counted) == 'table' then
      return -3
    end
    redis.call('HSET', beside, me, string.format('%.0f', own))
  end
  if life > 0 then
    redis.call('EXPIRE', beside, life)
  end
  local used = tonumber(redis.call('HGET', place, field) or '') or 0
  return math.max(0, used)
end

for at = 1, #KEYS / 2 do
  answer[at] = count(at)
end
return answer
