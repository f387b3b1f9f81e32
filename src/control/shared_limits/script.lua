-- Limits that several gateways hold together, told and asked about in one call. All moments are in
-- 64ths of a microsecond since 2026: whole numbers that a double holds without rounding. The time
-- of one unit may be a part of one; what is taken is rounded up, and what is given back down.
--
-- KEYS: what this gateway has told, then those of the amounts, of the slots, and of the items.
-- ARGV: number of what is told; the gateway; milliseconds that slots are held without a word of it;
-- amounts: how many, and each: time of one unit, units of a whole bucket, units (below 0: back);
-- slots: how many, and each: how many the gateway has; groups: how many, and each: its items: how
-- many, and each: time of one unit (0: slots), size or limit, units, further units that may be lent.
-- Gives for each group 0 and the further units of each item; or minus the number of the item that
-- lacks, and the time after which it does not.
local clock = redis.call('TIME')
local now = (clock[1] - 1767225600) * 64e6 + clock[2] * 64
local ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local me, life = ARGV[2], tonumber(ARGV[3])
local debt = 3600 * 64e6
local at_key, at_argument = 1, 3

local function key()
  at_key = at_key + 1
  return KEYS[at_key]
end

local function number()
  at_argument = at_argument + 1
  return tonumber(ARGV[at_argument])
end

local function stored(name)
  return tonumber(redis.call('GET', name) or '') or 0
end

-- When the bucket is full.
local function full_at(name, whole)
  return math.min(math.max(stored(name), now), now + whole + debt)
end

local function put(name, full)
  if full <= now then
    redis.call('DEL', name)
  else
    local left = string.format('%.0f', math.ceil((full - now) / 64000) + 1000)
    redis.call('SET', name, string.format('%.0f', full), 'PX', left)
  end
end

-- A batch of amounts counts once, however often it is sent, and however late it comes.
local is_new = stored(KEYS[1]) < tonumber(ARGV[1])
local amounts = number()
for _ = 1, amounts do
  local name, each, size, units = key(), number(), number(), number()
  if is_new and units > 0 then
    local whole = math.ceil(each * size)
    put(name, math.min(full_at(name, whole) + math.ceil(each * units), now + whole + debt))
  elseif is_new then
    put(name, stored(name) - math.floor(-each * units))
  end
end
if is_new and amounts > 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', 3600000)
end

local function hold(name, slots)
  if slots > 0 then
    redis.call('HSET', name, me, string.format('%.0f:%.0f', slots, ms + life))
    redis.call('PEXPIRE', name, 2 * life)
  else
    redis.call('HDEL', name, me)
  end
end

for _ = 1, number() do
  local name = key()
  hold(name, number())
end

-- Slots of this gateway, and of those others that still say so.
local function held(name)
  local own, others = 0, 0
  local all = redis.call('HGETALL', name)
  for i = 1, #all, 2 do
    local slots, till = string.match(all[i + 1], '^(%d+):(%d+)$')
    if not slots or tonumber(till) <= ms then
      redis.call('HDEL', name, all[i])
    elseif all[i] == me then
      own = tonumber(slots)
    else
      others = others + tonumber(slots)
    end
  end
  return own, others
end

local answer = {}
for _ = 1, number() do
  local items, lacks, wait = {}, 0, -1
  for i = 1, number() do
    local it = { name = key(), each = number(), size = number() }
    it.units, it.more = number(), number()
    local missing
    if it.each == 0 then
      local own, others = held(it.name)
      it.slots = own + it.units
      missing = it.slots + others > it.size and 0 or -1
    else
      it.whole = math.ceil(it.each * it.size)
      it.full = full_at(it.name, it.whole) + math.ceil(it.each * it.units)
      missing = it.full - now - it.whole
      if missing <= 0 then missing = -1 end
    end
    if missing > wait then
      lacks, wait = i, missing
    end
    items[i] = it
  end
  if lacks > 0 then
    answer[#answer + 1] = -lacks
    answer[#answer + 1] = math.ceil(wait)
  else
    answer[#answer + 1] = 0
    for _, it in ipairs(items) do
      local more = 0
      if it.each == 0 then
        hold(it.name, it.slots)
      else
        -- Half of what is left stays for others.
        local left = math.floor((it.whole - (it.full - now)) / it.each / 2)
        more = math.max(0, math.min(it.more, left))
        put(it.name, it.full + math.ceil(it.each * more))
      end
      answer[#answer + 1] = more
    end
  end
end
return answer
