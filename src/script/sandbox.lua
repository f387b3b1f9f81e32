-- What a script finds, made once for each VM. `raw` is Lua's own library, `own` what stands in for
-- those of its functions that could run for ever. Gives the function that runs a script.
local raw, own = ...

-- Elements of a table that one call may move.
local MANY = 8192
local error, select, type, tostring = raw.error, raw.select, raw.type, raw.tostring
local setmetatable, pcall, next = raw.setmetatable, raw.pcall, raw.next
local in_time = own.in_time

-- Methods of texts (`text:find(...)`) are looked up here, too: not in the library of C.
local string = {
  byte = raw.string.byte, char = raw.string.char, format = raw.string.format,
  len = raw.string.len, lower = raw.string.lower, reverse = raw.string.reverse,
  sub = raw.string.sub, upper = raw.string.upper,
}

-- The functions of ours give an error as text: raised here, it has the line of the script.
local function raised(message, ...)
  if message then error(message, 3) end
  return ...
end
for name, call in next, own.string do
  string[name] = function(...) return raised(call(...)) end
end
string.gmatch = function(text, pattern, start)
  local at, last = start or 1, nil
  local function found(message, stop, ...)
    if message then error(message, 3) end
    at, last = stop, stop
    return ...
  end
  return function()
    if at then return found(own.match_on(text, pattern, at, last)) end
  end
end

-- In C, and as long as the text: with a look at the clock behind each.
for _, name in next, {"lower", "upper", "reverse", "format"} do
  local call = string[name]
  string[name] = function(...)
    local result = call(...)
    in_time()
    return result
  end
end

local table = { concat = raw.table.concat, pack = raw.table.pack }
local function short(t)
  if type(t) ~= "table" then error("bad argument (table expected, got " .. type(t) .. ")", 3) end
  if #t > MANY then error("too many elements", 3) end
end
function table.insert(t, ...)
  short(t)
  in_time()
  return raw.table.insert(t, ...)
end
function table.remove(t, ...)
  short(t)
  in_time()
  return raw.table.remove(t, ...)
end
function table.move(from, first, last, to, into)
  if last - first >= MANY then error("too many elements to move", 2) end
  in_time()
  return raw.table.move(from, first, last, to, into)
end
function table.unpack(t, first, last)
  if (last or #t) - (first or 1) >= MANY then error("too many results to unpack", 2) end
  return raw.table.unpack(t, first, last)
end
local function before(a, b) return a < b end
function table.sort(t, order)
  short(t)
  -- Without an order, C compares, and nothing would look at the clock.
  return raw.table.sort(t, order or before)
end

-- A run that is over its time ends: nothing catches that.
local function caught(ok, ...)
  if ok then return true, ... end
  in_time()
  local fault = ...
  if type(fault) == "userdata" then fault = tostring(fault) end
  return false, fault
end
local function pcall_in_time(call, ...) return caught(pcall(call, ...)) end
local function handled(handler, ok, ...)
  if ok then return true, ... end
  return false, handler(...)
end

local math, utf8 = {}, {}
for name, value in next, raw.math do
  if name ~= "randomseed" then math[name] = value end
end
for name, value in next, raw.utf8 do utf8[name] = value end
-- As long as the text: with a look at the clock behind each.
for _, name in next, {"char", "codepoint", "len", "offset"} do
  local call = utf8[name]
  local function looked(...)
    in_time()
    return ...
  end
  utf8[name] = function(...) return looked(call(...)) end
end

-- Nobody writes a number so long; and it would be read to its end.
local DIGITS = 512
local function tonumber(value, ...)
  if type(value) == "string" and #value > DIGITS then return nil end
  return raw.tonumber(value, ...)
end

-- A library as scripts get it: it looks like the library, and nothing can be put into it.
local function sealed(library)
  return setmetatable({}, {
    __index = library,
    __newindex = function() error("libraries cannot be changed", 2) end,
    __pairs = function() return next, {}, nil end,
    __metatable = false,
  })
end
local of_texts = raw.getmetatable("")
of_texts.__index = string
of_texts.__metatable = false

local of_globals = { __index = {
  assert = raw.assert, error = error, ipairs = raw.ipairs, next = next, pairs = raw.pairs,
  select = select, tonumber = tonumber, tostring = tostring, type = type,
  unpack = table.unpack,
  pcall = pcall_in_time,
  xpcall = function(call, handler, ...) return handled(handler, pcall_in_time(call, ...)) end,
  string = sealed(string), table = sealed(table), math = sealed(math), utf8 = sealed(utf8),
  now = own.now, now_ms = own.now_ms, log = own.log,
  _VERSION = raw._VERSION,
} }
local of_headers = {
  __index = own.header,
  __pairs = function() return next, own.all_headers(), nil end,
  __metatable = false,
}

-- A run: the script with globals of its own, over the libraries that all runs share.
return function(script, api_key, data, metadata, method, path, ip)
  return script(setmetatable({
    api_key = api_key, data = data, key = data, metadata = metadata,
    request = {
      method = method, path = path, ip = ip, client_ip = ip,
      headers = setmetatable({}, of_headers),
    },
  }, of_globals))
end
