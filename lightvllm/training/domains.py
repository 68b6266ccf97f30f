# ruff: noqa: E501 - one line a table, however long
"""The handwritten domains, one table a line: `noun; column; column; ...` in plain English.

A column is `phrase:kind`. Kinds: `person`, `org`, `title`, `thing`, `place`, `code`, `city`, `country`, `email`, `date`,
`year`, `flag`, `1-90` (whole numbers), `1-90$` (two decimals), `a|b|c` (categories) and `noun` alone where the phrase says
the kind itself (`city`, `country`, `email`, `title`, `year`). `>book` is a foreign key to the table `book`;
`author>person` is one under another name. Every table gets a primary key of its own.
"""

DOMAINS = """
# library
author; name:person; country; birth year:1900-1995
book; title; >author; genre:Fantasy|Crime|Poetry|History|Romance; pages:80-900; price:5-60$; published:date
member; name:person; city; joined:date; age:10-85
loan; >book; >member; loan date:date; fine:0-20$
# online shop
customer; name:person; city; country; email; age:18-80
product; name:thing; category:Toys|Books|Garden|Kitchen|Sports; price:2-500$; stock:0-300; rating:1-5$
order; >customer; order date:date; status:open|shipped|cancelled|returned; total:10-900$
order item; >order; >product; quantity:1-9; discount:0-30$
# company
department; name:Sales|Finance|Research|Legal|Marketing|Support; budget:20000-900000; floor:1-12
employee; name:person; >department; salary:20000-150000; age:20-66; hire date:date; city; remote:flag
project; name:thing; >department; cost:1000-90000; start date:date; status:planned|running|done
timesheet; >employee; >project; hours:1-60; week:1-52
# university
faculty; name:Science|Arts|Medicine|Engineering|Law; building:place
professor; name:person; >faculty; salary:40000-160000; office:code
course; title; >professor; credits:2-12; level:bachelor|master|doctoral
student; name:person; year of birth:1990-2006; city; gpa:1-4$
enrollment; >student; >course; grade:1-100; semester:spring|autumn|summer
# hospital
doctor; name:person; specialty:cardiology|surgery|oncology|pediatrics; salary:60000-300000; years of experience:1-40
patient; name:person; age:0-99; gender:male|female; city; blood type:A|B|AB|O
appointment; >doctor; >patient; visit date:date; fee:20-600$; status:done|missed|booked
ward; name:place; beds:5-60; floor:1-9
# airline
airport; name:place; city; country; elevation:0-3000
aircraft; model:code; manufacturer:Boeing|Airbus|Embraer; seats:40-500; range:900-15000
flight; flight number:code; >aircraft; >airport; duration:40-900; price:30-1800$; departure date:date
passenger; name:person; nationality:country; age:1-90
ticket; >flight; >passenger; class:economy|business|first; fare:40-3000$
# music
artist; name:person; country; genre:rock|jazz|pop|folk|metal; followers:100-900000
album; title; >artist; release year:1960-2024; label:org; sales:1000-900000
track; title; >album; length:90-600; plays:10-90000
playlist; name:thing; curator:person; likes:0-5000
playlist entry; >playlist; >track; position:1-60
# football
team; name:place; city; founded:1880-2010; stadium:place; points:0-99
player; name:person; >team; position:goalkeeper|defender|midfielder|forward; goals:0-40; age:17-40; market value:1-90$
match; match date:date; home team>team; attendance:500-80000; home goals:0-7; away goals:0-7
coach; name:person; >team; nationality:country; wins:0-300
# restaurant
restaurant; name:place; city; cuisine:Italian|Indian|Mexican|Thai|French; rating:1-5$; seats:10-200
dish; name:thing; >restaurant; price:4-60$; calories:100-1600; vegetarian:flag
reservation; >restaurant; guest name:person; party size:1-12; reservation date:date
review; >restaurant; reviewer:person; stars:1-5; review date:date
# cinema
director; name:person; nationality:country; birth year:1930-1995
movie; title; >director; year:1960-2024; genre:drama|comedy|horror|action; length:70-210; budget:1-300$
cinema; name:place; city; screens:1-20; capacity:100-3000
screening; >movie; >cinema; screening date:date; ticket price:5-25$; tickets sold:0-400
# real estate
agent; name:person; agency:org; phone:code; commission:1-6$
property; address:place; city; type:house|apartment|studio|villa; bedrooms:1-7; price:60000-2000000; area:25-500; garden:flag
viewing; >property; >agent; viewing date:date; visitor:person
sale; >property; >agent; sale price:60000-2000000; sale date:date
# hotel
hotel; name:place; city; stars:1-5; rooms:10-400
room; room number:1-900; >hotel; type:single|double|suite; price per night:40-900$; balcony:flag
guest; name:person; country; loyalty points:0-5000
booking; >room; >guest; check in:date; nights:1-21; total price:50-4000$
# bank
customer; name:person; city; birth year:1940-2004; income:9000-200000
branch; name:place; city; assets:100000-9000000
account; >customer; >branch; type:savings|checking|deposit; balance:0-90000$; opened:date
transaction; >account; amount:1-5000$; kind:deposit|withdrawal|transfer; transaction date:date
# school
teacher; name:person; subject:math|biology|history|music|physics; salary:25000-70000; age:24-66
class; name:code; >teacher; room:1-60; size:10-34
pupil; name:person; >class; age:6-18; height:105-195
test; >pupil; subject:math|biology|history|music|physics; score:0-100; test date:date
# farm
farm; name:place; region:north|south|east|west; area:5-900; owner:person
animal; name:thing; species:cow|goat|sheep|pig|horse; >farm; weight:10-900; birth date:date
crop; kind:wheat|corn|rice|barley; >farm; yield:1-90$; harvest date:date
worker; name:person; >farm; wage:8-35$; age:17-70
# logistics
warehouse; name:place; city; capacity:100-9000; manager:person
driver; name:person; license:code; age:21-68; hire date:date
truck; plate:code; >driver; max load:900-30000; mileage:1000-800000
shipment; >warehouse; >truck; weight:10-20000; destination:city; ship date:date; status:loaded|moving|delivered
# social network
user; username:thing; email; country; birth date:date; verified:flag
post; >user; content:title; likes:0-9000; post date:date; language:English|French|Spanish|German
comment; >post; >user; text:title; comment date:date
group; name:thing; topic:travel|cooking|games|news; members:2-9000
# car dealer
manufacturer; name:org; country; founded:1890-2010
car; model:thing; >manufacturer; year:1995-2024; price:3000-120000; mileage:0-300000; color:red|blue|black|white|grey; fuel:petrol|diesel|electric
salesperson; name:person; commission rate:1-9$; hire date:date
sale; >car; >salesperson; sale date:date; sale price:3000-120000; payment:cash|credit|lease
# insurance
client; name:person; age:18-90; city; occupation:nurse|teacher|driver|chef|lawyer
policy; policy number:code; >client; type:home|car|life|travel; premium:50-3000$; start date:date
claim; >policy; amount:50-40000$; claim date:date; state:open|paid|refused
# gym
trainer; name:person; specialty:yoga|boxing|strength|dance; hourly rate:15-120$; certified:flag
member; name:person; age:16-80; weight:45-140; membership:basic|plus|premium; joined:date
session; >trainer; >member; session date:date; minutes:20-120; calories burned:50-1200
# weather
station; name:place; country; latitude:0-90$; altitude:0-4000; installed:date
reading; >station; reading date:date; temperature:0-45$; humidity:5-100; wind speed:0-140; rainfall:0-90$
# museum
museum; name:place; city; opened:1800-2015; visitors:1000-900000; entry fee:0-30$
artist; name:person; nationality:country; birth year:1400-1980
painting; title; >artist; >museum; year:1450-2020; style:baroque|modern|cubist|realist; value:1000-900000
exhibition; name:title; >museum; start date:date; end date:date
# law firm
lawyer; name:person; rank:partner|associate|junior; hourly rate:80-900; joined:date
client; name:org; industry:energy|retail|health|media; country
case; title; >client; >lawyer; court:place; opened:date; outcome:won|lost|settled|pending; damages:0-900000
# software
developer; name:person; team:backend|frontend|mobile|data; level:junior|middle|senior; country
repository; name:thing; language:Python|Rust|Java|Go; stars:0-90000; license:MIT|Apache|GPL; created:date
issue; title; >repository; severity:low|medium|high|critical; opened:date; closed:flag
commit; >repository; >developer; lines added:0-2000; lines removed:0-900; commit date:date
# zoo
keeper; name:person; salary:18000-50000; years of service:0-35
enclosure; name:place; type:aviary|aquarium|savanna|reptile; area:20-5000
animal; name:thing; species:lion|zebra|parrot|penguin|snake; >enclosure; >keeper; age:0-60; weight:1-5000; endangered:flag
feeding; >animal; food:meat|fruit|fish|seeds; amount:0-40$; feeding date:date
# energy
plant; name:place; fuel:coal|gas|solar|wind|hydro; capacity:5-2000; commissioned:year; country
operator; name:org; country; employees:20-9000
outage; >plant; start date:date; hours:1-400; cause:storm|repair|fire|overload
contract; >operator; >plant; price:20-200$; signed:date
# election
party; name:thing; founded:1850-2020; ideology:liberal|green|conservative|social; members:100-900000
candidate; name:person; >party; age:21-85; gender:male|female; city
district; name:place; population:5000-900000; turnout:30-95$
result; >candidate; >district; votes:10-90000; year
# supermarket
supplier; name:org; city; contact:person; rating:1-5
item; name:thing; >supplier; section:fruit|dairy|bakery|meat|drinks; price:0-40$; shelf:code; organic:flag
cashier; name:person; shift:morning|evening|night; hourly wage:9-22$
receipt; >cashier; amount:1-400$; purchase date:date; payment method:cash|card|voucher
# train network
station; name:place; city; platforms:1-24; opened:1850-2020
train; name:thing; type:express|local|freight|night; seats:0-900; max speed:80-320
trip; >train; >station; trip date:date; delay:0-180; passengers:0-900
conductor; name:person; >train; hire date:date; salary:25000-60000
# theater
theater; name:place; city; seats:80-2500; built:1700-2015
play; title; playwright:person; genre:tragedy|comedy|musical|drama; acts:1-5; premiere:date
performance; >play; >theater; performance date:date; audience:10-2500; revenue:100-90000
actor; name:person; age:16-85; awards:0-20
casting; >actor; >play; role:thing; fee:500-60000
# pharmacy
manufacturer; name:org; country; staff count:20-90000
drug; name:thing; >manufacturer; form:tablet|syrup|cream|injection; dose:1-900; price:1-300$; prescription only:flag
pharmacist; name:person; license number:code; years of practice:0-45
prescription; >drug; >pharmacist; patient:person; issue date:date; refills:0-12
# wine
region; name:place; country; climate:dry|mild|cool
winery; name:place; >region; founded:1700-2015; hectares:2-400
wine; name:thing; >winery; color:red|white|rose; vintage:1980-2023; alcohol:8-16$; price:5-900$; score:70-100
tasting; >wine; taster:person; points:50-100; tasting date:date
# police
officer; name:person; rank:sergeant|captain|detective|cadet; badge number:1-9999; years of service:0-40
precinct; name:place; city; officers count:5-400
incident; >precinct; >officer; type:theft|fraud|assault|accident; incident date:date; solved:flag
suspect; name:person; >incident; age:16-80; gender:male|female
# construction
contractor; name:org; city; workers:2-900; rating:1-5$
site; name:place; >contractor; budget:10000-9000000; start date:date; progress:0-100
machine; name:thing; type:crane|digger|mixer|loader; daily cost:50-4000; weight:500-90000
rental; >machine; >site; days:1-300; rental date:date
# publishing
publisher; name:org; country; founded:1800-2015
journal; title; >publisher; field:physics|medicine|history|economics; impact factor:0-40$; issues per year:1-52
article; title; >journal; pages:2-60; citations:0-900; published:date; open access:flag
researcher; name:person; institute:place; h index:0-120
authorship; >researcher; >article; position:1-9
# telecom
plan; name:thing; monthly fee:5-120$; data limit:1-200; type:prepaid|contract|business
subscriber; name:person; >plan; city; signup date:date; active:flag
call; >subscriber; duration:1-7200; call date:date; cost:0-40$; kind:local|national|international
tower; name:code; city; height:15-120; range:1-40
# games
studio; name:org; country; employees:2-3000; founded:1980-2020
game; title; >studio; genre:puzzle|racing|strategy|shooter; release date:date; price:0-80$; rating:1-10$; copies sold:100-9000000
gamer; nickname:thing; country; level:1-99; playtime:1-9000
score; >game; >gamer; points:0-99999; score date:date
# charity
donor; name:person; country; type:private|company|foundation
campaign; name:title; goal:1000-900000; start date:date; cause:health|education|animals|climate
donation; >donor; >campaign; amount:5-20000$; donation date:date; anonymous:flag
volunteer; name:person; age:16-80; city; hours:0-900
# astronomy
observatory; name:place; country; altitude:0-5200; opened:1850-2020
telescope; name:thing; >observatory; aperture:0-40$; type:optical|radio|infrared
star; name:code; constellation:Orion|Lyra|Cygnus|Draco; magnitude:0-15$; distance:4-9000
observation; >telescope; >star; night:date; exposure:1-3600; astronomer:person
# fashion
designer; name:person; country; label:org
garment; name:thing; >designer; type:dress|coat|shirt|skirt; material:cotton|silk|wool|linen; price:15-4000$; season:spring|summer|autumn|winter
store; name:place; city; area:30-2000; manager:person
stock record; >garment; >store; quantity:0-90; size:S|M|L|XL
# mining
mine; name:place; country; mineral:gold|copper|iron|coal; depth:50-4000; opened:1880-2020
miner; name:person; >mine; age:18-66; salary:20000-90000
extraction; >mine; tons:1-9000; extraction date:date; purity:10-99$
accident; >mine; accident date:date; injured:0-30
# ships
port; name:place; country; docks:1-80; depth:5-30
ship; name:thing; type:tanker|ferry|cruise|container; length:20-400; built:1960-2023; flag:country
captain; name:person; >ship; age:28-68; salary:40000-160000
voyage; >ship; >port; departure:date; cargo weight:0-90000; days at sea:1-90
# podcast
host; name:person; country; followers:10-900000
podcast; title; >host; topic:science|crime|sports|politics; language:English|French|Spanish|German; rating:1-5$
episode; title; >podcast; minutes:5-180; downloads:10-90000; release date:date
sponsor; name:org; budget:1000-90000; industry:food|tech|travel
advert; >sponsor; >episode; price:50-9000; seconds:10-90
# recruitment
company; name:org; industry:tech|retail|finance|health; city; employees:5-90000
job; title:thing; >company; salary:20000-200000; type:full time|part time|internship; posted:date
applicant; name:person; experience:0-35; degree:bachelor|master|doctorate; city
application; >job; >applicant; applied:date; status:new|interview|rejected|hired
# kitchen recipes
chef; name:person; country; restaurant:place
recipe; name:title; >chef; difficulty:easy|medium|hard; cooking time:5-300; servings:1-12; vegan:flag
ingredient; name:thing; price:0-30$; calories:5-900; kind:vegetable|spice|meat|grain
recipe ingredient; >recipe; >ingredient; grams:1-900
# taxi
driver; name:person; rating:1-5$; birth year:1955-2002; license:code
vehicle; plate:code; >driver; brand:Toyota|Skoda|Tesla|Ford; seats:4-8; year:2005-2024
ride; >vehicle; distance:1-90$; fare:4-150$; ride date:date; rider:person
# city government
district; name:place; population:1000-300000; area:1-90$; mayor:person
park; name:place; >district; area:1-400; playground:flag; opened:year
school; name:place; >district; students:50-2500; type:primary|secondary|vocational
permit; >district; applicant:person; kind:building|event|parking; issue date:date; fee:10-2000
# cycling race
team; name:org; country; budget:1-50$
cyclist; name:person; >team; age:18-42; weight:50-90; wins:0-60
stage; name:place; distance:5-260$; type:flat|mountain|sprint; stage date:date
stage result; >stage; >cyclist; rank:1-180; seconds:3000-30000
# veterinary
owner; name:person; city; phone:code
pet; name:thing; >owner; species:dog|cat|rabbit|parrot; weight:0-80$; birth date:date; gender:male|female
vet; name:person; specialty:surgery|dental|general; fee:20-200
treatment; >pet; >vet; treatment date:date; cost:10-2000$; diagnosis:title
# coffee shop
shop; name:place; city; tables:2-40; opened:date
barista; name:person; >shop; hourly wage:9-25$; experience:0-20
drink; name:thing; type:coffee|tea|juice; size:small|medium|large; price:1-9$; caffeine:0-300
purchase; >drink; >shop; quantity:1-6; purchase date:date
# festival
festival; name:title; city; year:1990-2024; visitors:500-200000
band; name:thing; genre:rock|jazz|pop|folk|metal; members:1-9; formed:1960-2022
concert; >band; >festival; stage:thing; fee:500-200000; minutes:20-180
# tv
channel; name:thing; country; launched:1950-2020; language:English|French|Spanish|German
show; title; >channel; seasons:1-30; genre:news|drama|quiz|reality; rating:1-10$
show episode; title; >show; season:1-30; viewers:1000-9000000; air date:date
# space
agency; name:org; country; budget:10-30000
astronaut; name:person; >agency; birth year:1930-1995; gender:male|female; flights:0-7
mission; name:thing; >agency; launch date:date; duration:1-900; status:success|failure|planned; crewed:flag
crew; >astronaut; >mission; role:commander|pilot|engineer
# antiques
seller; name:person; city; rating:1-5$
lot; title; >seller; category:coins|furniture|jewelry|maps; start price:5-9000; year made:1600-1960
bidder; name:person; country; registered:date
bid; >lot; >bidder; amount:5-20000; bid date:date
# dance school
dance style; name:thing; origin:country; tempo:slow|medium|fast
instructor; name:person; age:20-70; hourly pay:15-90$
lesson; >dance style; >instructor; room:code; lesson date:date; participants:1-40
# laboratory
scientist; name:person; field:chemistry|biology|physics; publications:0-300
sample; label:code; >scientist; mass:0-90$; collected:date; toxic:flag
experiment; title; >scientist; cost:50-90000; start date:date; result:positive|negative|unclear
measurement; >experiment; >sample; value:0-900$; measured:date
# call center
agent; name:person; team:red|blue|green; salary:18000-50000; hired:date
caller; name:person; city; segment:private|business
ticket; >agent; >caller; priority:low|normal|urgent; minutes:1-120; opened:date; resolved:flag
# fishing
boat; name:thing; length:5-60$; harbor:place; built:1960-2022
fisher; name:person; >boat; age:18-75; license:code
catch; >boat; species:cod|salmon|tuna|herring; weight:1-9000; catch date:date; price per kilo:1-40$
# factory
machine; name:code; type:press|lathe|drill|robot; installed:date; power:1-400
operator; name:person; shift:day|night; wage:12-45$
batch; >machine; >operator; units:10-9000; defects:0-300; production date:date
maintenance; >machine; maintenance date:date; cost:20-20000; technician:person
# tourism
guide; name:person; language:English|French|Spanish|German; daily rate:50-600; rating:1-5$
tour; name:title; >guide; city; price:10-900$; days:1-21; difficulty:easy|medium|hard
tourist; name:person; country; age:5-85
signup; >tour; >tourist; signup date:date; paid:flag
# debate club
debater; name:person; school:place; ranking:1-500
motion; topic:title; category:economy|ethics|science; year
debate; >motion; winner>debater; debate date:date; audience:5-900
# flower shop
flower; name:thing; color:red|white|yellow|pink; price:0-20$; stem length:10-120; season:spring|summer|autumn|winter
florist; name:person; salary:18000-45000; hire date:date
bouquet; name:title; >florist; price:10-200$; occasion:wedding|birthday|funeral
bouquet flower; >bouquet; >flower; count:1-50
# data center
rack; label:code; room:code; units:12-48
server; hostname:thing; >rack; memory:8-1024; cores:2-128; os:linux|windows|bsd; bought:date
alert; >server; level:info|warning|critical; alert date:date; acknowledged:flag
# water
reservoir; name:place; capacity:100-90000; region:north|south|east|west; built:1900-2015
pump; name:code; >reservoir; flow rate:1-900; power:1-500; status:running|stopped|broken
sample; >reservoir; ph:5-9$; chlorine:0-4$; sample date:date
# bike sharing
dock; name:place; city; slots:4-60; opened:date
bike; label:code; brand:Cube|Trek|Giant|Scott; electric:flag; battery level:0-100; bought:date
cyclist; name:person; age:16-75; city; plan:daily|monthly|yearly
rental; >bike; >cyclist; >dock; minutes:2-300; rental date:date; charge:0-30$
# beekeeping
beekeeper; name:person; country; years active:0-50
apiary; name:place; >beekeeper; altitude:0-2000; terrain:forest|meadow|heath
hive; label:code; >apiary; frames:5-24; queen age:0-5; wood:pine|cedar|spruce
honey harvest; >hive; kilograms:1-60$; harvest date:date; honey:acacia|linden|chestnut
# chess
chess player; name:person; federation:country; elo:1000-2860; birth year:1940-2012
tournament; title; city; prize fund:100-500000; rounds:5-13; start date:date
game; >tournament; white>chess player; opening:Sicilian|French|English|Catalan; moves:10-140; played:date
arbiter; name:person; license:code; fee:50-900
# ski resort
resort; name:place; country; slopes:3-180; summit height:900-3900; snow guns:0-900
lift; name:thing; >resort; type:gondola|chairlift|draglift; capacity per hour:300-4800; built:1960-2023
ski pass; >resort; holder:person; price:20-900$; valid days:1-14; issued:date
rescue; >resort; rescue date:date; severity:minor|serious|fatal; helicopter:flag
# orchestra
orchestra; name:thing; city; founded:1800-2015; budget:50000-9000000
musician; name:person; >orchestra; instrument:violin|cello|flute|horn; salary:20000-90000; joined:date
composer; name:person; nationality:country; birth year:1600-1985
work; title; >composer; movements:1-6; minutes:4-95
recital; >orchestra; >work; recital date:date; audience:40-3000; ticket price:8-180$
# blood bank
center; name:place; city; fridges:1-40
blood donor; name:person; age:18-70; blood group:A|B|AB|O; city; weight:45-130
blood donation; >blood donor; >center; milliliters:200-500; donated:date; tested:flag
delivery; >center; hospital:place; bags:1-90; urgency:low|high|emergency; delivery date:date
# translation bureau
translator; name:person; native language:Polish|Korean|Arabic|Italian; rate per word:0-1$; sworn:flag
customer; name:org; country; vip:flag
assignment; title; >translator; >customer; word count:50-90000; deadline:date; status:draft|delivered|invoiced
invoice; >customer; amount:20-9000$; sent:date; paid:flag
# recycling
depot; name:place; city; area:100-20000; workers:2-90
material; name:thing; kind:metal|glass|paper|plastic; price per ton:5-2500$
load; >depot; >material; tons:0-90$; arrived:date; contamination:0-40
buyer; name:org; country; rating:1-5
sale; >buyer; >material; quantity:1-500; revenue:50-90000; sale date:date
# escape rooms
venue; name:place; city; rooms:1-12; manager:person
escape room; title; >venue; theme:pirates|prison|temple|space; difficulty:1-10; max players:2-10
crew; name:thing; size:2-10; country
playthrough; >escape room; >crew; minutes used:10-60; hints:0-9; solved:flag; play date:date
# campsite
campsite; name:place; region:coast|mountain|lake; pitches:10-400; pool:flag; stars:1-5
pitch; number:code; >campsite; surface:grass|gravel|sand; size:40-200; nightly fee:8-90$
camper; name:person; country; email; birth year:1940-2006
stay; >pitch; >camper; arrival:date; nights:1-28; total cost:10-2000$
"""

# Domains no training pair is drawn from. Errors on the first group were looked at while the generator was built. The
# second, the test split, was written when a first version of the model was done. Its total was looked at once before
# the last training, for which composed schemas got more names of two words and more roles; its errors never were.
VALIDATION_DOMAINS = (
    "hospital", "car dealer", "podcast", "museum", "telecom", "taxi", "games", "veterinary", "wine", "recruitment",
    "ships", "data center",
)  # fmt: skip
TEST_DOMAINS = (
    "bike sharing", "beekeeping", "chess", "ski resort", "orchestra", "blood bank", "translation bureau", "recycling",
    "escape rooms", "campsite",
)  # fmt: skip
